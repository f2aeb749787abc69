#!/bin/sh
# Configures the packages that were extracted into the folder $1, as far as programs notice, without running them: they
# are of another architecture. Their maintainer scripts are kept for upgrades.
set -eu
root=$1
info=$root/var/lib/dpkg/info
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What dpkg knows of installed packages.
mkdir -p "$info"
for deb in "$root"/var/cache/apt/archives/*.deb; do
    dpkg-deb --field "$deb" >"$work/control"
    field() { sed -n "s/^$1: //p" "$work/control"; }
    name=$(field Package)
    [ "$(field Multi-Arch)" != same ] || name=$name:$(field Architecture)
    sed '/^Package: /a Status: install ok installed' "$work/control" >>"$work/status"
    echo >>"$work/status"
    dpkg-deb --control "$deb" "$work/scripts"
    for file in "$work"/scripts/*; do
        [ "${file##*/}" = control ] || cp -p "$file" "$info/$name.${file##*/}"
    done
    dpkg-deb --fsys-tarfile "$deb" | tar --list | sed 's|^\./|/|; s|\(.\)/$|\1|; s|^/$|/.|' >"$info/$name.list"
    rm -r "$work/scripts"
done
cp "$work/status" "$root/var/lib/dpkg/status"
echo 1 >"$info/format"

# base-files
for folder in media mnt opt srv; do
    mkdir -p "$root/$folder"
done
cp "$root/usr/share/base-files/profile" "$root/etc"
for database in passwd group shadow gshadow networks; do
    echo "$database: files"
done >"$root/etc/nsswitch.conf"
echo 'hosts: files dns' >>"$root/etc/nsswitch.conf"
cp "$root/usr/share/base-files/dot.bashrc" "$root/root/.bashrc"
cp "$root/usr/share/base-files/dot.profile" "$root/root/.profile"
# base-passwd, passwd, apt
cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
echo '_apt:x:42:65534::/nonexistent:/usr/sbin/nologin' >>"$root/etc/passwd"
sed 's/:.*/:*:19000:0:99999:7:::/' "$root/etc/passwd" >"$root/etc/shadow"
sed 's/:.*/:*::/' "$root/etc/group" >"$root/etc/gshadow"
chown 0:42 "$root/etc/shadow" "$root/etc/gshadow"
chmod 640 "$root/etc/shadow" "$root/etc/gshadow"
printf '/bin/sh\n/bin/bash\n' >"$root/etc/shells"
# ca-certificates
cat "$root"/usr/share/ca-certificates/*/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
# mawk, gcc, debianutils, util-linux
alternative() {
    ln -s "$2" "$root/etc/alternatives/$1"
    ln -s "/etc/alternatives/$1" "$root/usr/bin/$1"
}
alternative awk /usr/bin/mawk
alternative nawk /usr/bin/mawk
alternative cc /usr/bin/gcc
alternative c89 /usr/bin/c89-gcc
alternative c99 /usr/bin/c99-gcc
alternative pager /bin/more
alternative which /usr/bin/which.debianutils
