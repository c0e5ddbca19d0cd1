# What the README and CI call. On a fresh Debian or Ubuntu with Rust, `make demo` and `make test` install what they need.

.PHONY: demo test compat bench bench-whole bench-layer bench-network bench-images bench-start bench-micro real-work lint setup

demo:
	bash demo/demo.sh

test: setup
	cargo build
	cargo test --workspace

# Asks apptainer anew what the cases of tests/compat come to, then siphon. APPTAINER is the command that runs it as an
# unprivileged user, such as "apptainer", or "enter apptainer" where `enter` runs a command in the root that has it.
compat: setup
	SIPHON_COMPAT_APPTAINER="$(or $(APPTAINER),apptainer)" cargo test -p siphon --test compat
	cargo test -p siphon --test compat

# Whole programs, then single operations of the reader. WORK="tar find" selects among the former; for IMAGE, TREE, RUNS
# and others see docs/PERFORMANCE.md.
LAYER_WORK = files untar pip big append

bench: $(if $(WORK),$(if $(filter-out $(LAYER_WORK),$(WORK)),bench-whole),bench-whole) \
	$(if $(WORK),$(if $(filter $(LAYER_WORK),$(WORK)),bench-layer),bench-layer bench-micro)

bench-whole: setup
	cargo build --release
	WORK="$(filter-out $(LAYER_WORK),$(WORK))" python3 benches/compare

# What writes to a layer cost. FUSE_OVERLAYFS and SQUASHFUSE_LL name the peers' commands, WHEELS a directory with numpy and
# pandas, SYSTEMS what to compare.
bench-layer: setup
	cargo build --release
	WORK="$(filter $(LAYER_WORK),$(WORK))" python3 benches/layer

# Package managers, git, a build, sqlite and rsync in the Debian or Ubuntu IMAGE, by both engines, which have to come to the same as
# a plain directory. As an ordinary user with subordinate ids, and with the network; CERTIFICATE are those of a proxy.
real-work:
	cargo build --release
	SIPHON="$(or $(SIPHON),target/release/siphon)" CERTIFICATE="$(CERTIFICATE)" benches/layer/real-work "$(IMAGE)"

# What an image behind a slow link costs: IMAGE is a SIF or squashfs, WORK some of the works that --help names.
bench-network: setup
	cargo build --release
	python3 benches/network $(WORK)

# What making an image costs: IMAGE is a SIF, LAYOUT the OCI layout of the same, TREE what it unpacks to, WORK some of the works
# that --help names. As root, for file systems of its own and for dropping caches.
bench-images: setup
	cargo build --release
	python3 benches/images --image "$(IMAGE)" $(if $(LAYOUT),--layout "$(LAYOUT)") $(if $(TREE),--tree "$(TREE)") $(WORK)

# How long a program takes to start, and 32 at once: IMAGE is a SIF or squashfs that has /bin/true.
bench-start:
	cargo build --release
	python3 benches/start $(IMAGE)

bench-micro:
	cargo bench -p siphon-image --bench squashfs

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

setup:
	bash tests/setup
