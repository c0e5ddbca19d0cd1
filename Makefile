# What the README and CI call. On a fresh Debian or Ubuntu with Rust, `make demo` and `make test` install what they need.

.PHONY: demo test bench lint setup

demo:
	bash demo/demo.sh

test: setup
	cargo build
	cargo test --workspace

bench:
	bash benches/compare.sh $(IMAGE)

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

setup:
	bash tests/setup
