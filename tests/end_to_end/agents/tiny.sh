# Makes the packages of a tiny system for pacman, and a repository of them, in the directory $1. Not as root.
set -eu
cd "$1"
mkdir -p repository
for name in base haveged greeting; do
    mkdir -p "$name"
    cat >"$name/PKGBUILD" <<END
pkgname=$name
pkgver=1
pkgrel=1
arch=(any)
install=$name.install
package() {
    mkdir -p "\$pkgdir/etc" "\$pkgdir/usr/bin"
    echo $name >"\$pkgdir/etc/$name"
    [ $name = base ] || return 0
    cp /bin/busybox "\$pkgdir/usr/bin/busybox"
    for name in sh bash cat chown echo head id ls stat; do ln -s busybox "\$pkgdir/usr/bin/\$name"; done
    ln -s usr/bin "\$pkgdir/bin"
}
END
    echo "post_install() { :; }" >"$name/$name.install"
    [ "$name" != greeting ] || echo 'post_install() { head -c 1 /dev/zero >/dev/null && echo "hello from $(id -u)" >/etc/greeting; }' \
        >"$name/$name.install"
    (cd "$name" && PKGEXT=.pkg.tar.gz makepkg --nodeps --config /etc/makepkg.conf >log 2>&1) || { cat "$name/log"; exit 1; }
    cp "$name"/*.pkg.tar.gz repository
done
repo-add -q repository/tiny.db.tar.gz repository/*.pkg.tar.gz
