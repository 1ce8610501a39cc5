#!/bin/sh
# See pyunion at work: change this machine's own files without changing them.
#
# usage: scripts/demo.sh
#
# Installs pyunion into a fresh temporary folder and mounts a union there whose
# lower is "/". As an ordinary user (run by root: as an id that nobody has), in a
# user namespace, it changes root into the union, edits, deletes and renames what
# belongs to root, and shows what the upper has recorded. Then pyrun starts a
# container on the machine's own root, and one from a Debian image that
# mmdebstrap makes (root installs it if need be). The files of the machine are
# compared before and after. Nothing is left behind.
set -eu

die() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
    exit 1
}

say() {
    printf '\n== %s\n' "$*"
}

# -- in the user namespace; $1 is the folder ----------------------------------------------

inside() {
    here=$1
    PATH=$here/venv/bin:$PATH
    trap 'pyunion umount --lazy "$here/mnt" 2>/dev/null || :' EXIT
    trap 'exit 130' INT TERM HUP
    # Nobody but us is known in this namespace: root's files are shown as ours, and who owns
    # what in the upper is kept in attributes.
    pyunion mount --work "$here/work" -o squash_to_root,xattr_permissions=2 \
        / "$here/upper" "$here/mnt"
    mount --rbind /proc "$here/mnt/proc"
    mount --rbind /dev "$here/mnt/dev"

    say "In the union, as root of a user namespace"
    chroot "$here/mnt" /bin/sh -euxc '
        cd /
        echo "This is not your machine." >/etc/motd
        sed -i "s/^root:/admin:/" /etc/passwd
        mkdir /opt/demo
        cp /usr/bin/head /opt/demo/
        mv /usr/bin/tail /usr/bin/end
        rm /usr/bin/yes
        chmod 600 /etc/profile
        rm -r /etc/skel
        head -n 1 /etc/passwd
    ' 2>&1
    umount -l "$here/mnt/proc" "$here/mnt/dev"

    say "pyunion diff: what the upper has recorded"
    pyunion diff "$here/mnt"
    trap - EXIT
    pyunion umount "$here/mnt"
}

# -- a container, outside of that namespace; $1 is the folder -------------------------------

container() {
    here=$1
    PATH=$here/venv/bin:$PATH
    HOME=$here/home
    XDG_RUNTIME_DIR=$here/run
    XDG_DATA_HOME=$here/home/data
    export HOME XDG_RUNTIME_DIR XDG_DATA_HOME
    mkdir -p "$HOME" "$XDG_RUNTIME_DIR"
    chmod 700 "$XDG_RUNTIME_DIR"
    say "pyrun: a container of an ordinary user, on a union over this machine's root"
    # One id is enough here; with subordinate ids the container would have all of them.
    pyrun run --name demo --userns single --network none --rootfs / /bin/sh -euxc '
        id
        hostname
        echo "This is not your machine." >/etc/motd
        mv /usr/bin/tail /usr/bin/end
        ps -e
    ' 2>&1
    say "pyrun diff: what it has changed"
    pyrun diff demo
    pyrun rm demo >/dev/null
    [ -f "$here/debian.tar" ] || return 0
    say "cowstore and pyrun: a container of an ordinary user, from a Debian image"
    cowstore import "rootfs:$here/debian.tar" debian
    pyrun run --name debian --userns single --network none debian /bin/sh -euxc '
        head -n 1 /etc/os-release
        dpkg-query -W | wc -l
        echo "Not this machine either." >/etc/motd
        rm /usr/bin/yes
    ' 2>&1
    pyrun diff debian
    pyrun rm debian >/dev/null
}

# -- run by root: leave root, in a mount namespace of our own -----------------------------

leave_root() {
    here=$1 uid=$2
    become="setpriv --reuid $uid --regid $uid --clear-groups --no-new-privs"
    # shellcheck disable=SC2016,SC2086 # the inner shell's $; one word an argument
    if ! $become sh -c 'test -r /dev/fuse && test -w /dev/fuse'; then
        # Here it is root's alone: give the user a node, which only we can see.
        mkdir "$here/dev"
        mount -t tmpfs -o mode=755 none "$here/dev"
        mknod "$here/dev/fuse" c 10 229
        chmod 666 "$here/dev/fuse"
        mount --bind "$here/dev/fuse" /dev/fuse
    fi
    # shellcheck disable=SC2086
    $become sh "$here/demo.sh" --container "$here"
    # shellcheck disable=SC2086
    exec $become unshare --user --map-root-user --mount sh "$here/demo.sh" --inside "$here"
}

case ${1-} in
    --inside)
        inside "$2"
        exit
        ;;
    --container)
        container "$2"
        exit
        ;;
    --leave-root)
        leave_root "$2" "$3"
        ;;
    '') ;;
    *) die "unexpected: $1" "usage: scripts/demo.sh" ;;
esac

# -- outside ------------------------------------------------------------------------------

root=$(cd "$(dirname "$0")/.." && pwd)
cd /
PYTHONDONTWRITEBYTECODE=1
export PYTHONDONTWRITEBYTECODE
unset PYTHONPATH PYTHONHOME
uid=$(id -u)
if [ "$uid" -eq 0 ]; then
    uid=64000
    while getent passwd "$uid" >/dev/null; do
        uid=$((uid + 1))
    done
fi

as_user() {
    if [ "$(id -u)" -eq 0 ]; then
        setpriv --reuid "$uid" --regid "$uid" --clear-groups -- "$@"
    else
        "$@"
    fi
}

for program in unshare setpriv getent find sha256sum; do
    command -v "$program" >/dev/null || die "no $program" "install util-linux and coreutils"
done
[ -e /dev/fuse ] || die "/dev/fuse does not exist" "load the fuse module: modprobe fuse"
if [ ! -r /dev/fuse ] || [ ! -w /dev/fuse ]; then
    die "/dev/fuse is not for you" "as root: chmod 666 /dev/fuse, which is how udev makes it"
fi
as_user unshare --user --map-root-user --mount true 2>/dev/null ||
    die "no user namespaces for ordinary users" "see sysctl kernel.unprivileged_userns_clone"

# Not every interpreter can be reached by every user, and not every one has venv.
python=
for candidate in ${PYTHON:+"$PYTHON"} \
    python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
    real=$("$candidate" -c 'import sys; print(sys.executable)' 2>/dev/null) || continue
    if as_user "$real" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
    then
        python=$real
        break
    fi
done
[ -n "$python" ] || die "no Python 3.11 or later with venv" "apt-get install python3-venv"

# On the filesystem of "/", so that upper and mount point lie inside the lower, if it can be.
here=
for place in "${TMPDIR:-/tmp}" /tmp /var/tmp; do
    [ "$(stat -c %d "$place")" = "$(stat -c %d /)" ] || continue
    as_user test -w "$place" || continue
    here=$place
    break
done
here=$(mktemp -d "${here:-/var/tmp}/pyunion-demo.XXXXXX")

clean_up() {
    # Nothing is mounted here: all mounts were made in namespaces of their own.
    chmod -R u+rwX "$here" 2>/dev/null || :
    rm -rf --one-file-system "$here"
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP
chmod 755 "$here"

debian_image() {
    # A root filesystem as a tar archive, for the container to run from.
    if ! command -v mmdebstrap >/dev/null; then
        if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
            echo "left out: no mmdebstrap (apt-get install mmdebstrap)"
            return
        fi
        apt-get update -q >/dev/null
        DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
            mmdebstrap >/dev/null
    fi
    release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    if mmdebstrap --quiet --variant=minbase "${release:-stable}" "$here/debian.tar" \
        >"$here/mmdebstrap.log" 2>&1; then
        chmod a+r "$here/debian.tar"
        du -h "$here/debian.tar" | cut -f 1
    else
        rm -f "$here/debian.tar"
        echo "left out: mmdebstrap: $(tail -n 1 "$here/mmdebstrap.log")"
    fi
}

manifest() {
    # Names, types, modes, owners, links, sizes, times; contents of some.
    find /etc /usr /boot /srv -xdev -printf '%p %y %m %U:%G %n %s %T@ %C@ %l\n' 2>/dev/null |
        LC_ALL=C sort || :
    find /etc /usr/bin -xdev -type f -readable -print0 2>/dev/null |
        LC_ALL=C sort -z | xargs -0 sha256sum 2>/dev/null || :
}

say "Installing into $here, with $python"
mkdir "$here/src" "$here/upper" "$here/work" "$here/mnt" "$here/home" "$here/run"
cp "$root/scripts/demo.sh" "$here/demo.sh"
(cd "$root" && cp -R pyproject.toml setup.py README.md LICENSE docs scripts unionfs "$here/src/")
for package in cowstore runtime bench; do
    [ ! -d "$root/$package" ] || cp -R "$root/$package" "$here/src/"
done
"$python" -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet --disable-pip-version-check "$here/src"
"$here/venv/bin/pyunion" --version

say "Making a Debian image"
debian_image

say "Noting what the machine's files are"
manifest >"$here/before"
wc -l <"$here/before"

if [ "$(id -u)" -eq 0 ]; then
    chown "$uid:$uid" "$here/upper" "$here/work" "$here/mnt" "$here/home" "$here/run"
    chmod -R go+rX "$here/venv" "$here/demo.sh"
    unshare --mount --propagation private sh "$here/demo.sh" --leave-root "$here" "$uid"
else
    sh "$here/demo.sh" --container "$here"
    unshare --user --map-root-user --mount sh "$here/demo.sh" --inside "$here"
fi

say "Comparing the machine's files"
manifest >"$here/after"
if cmp -s "$here/before" "$here/after"; then
    echo "unchanged: names, modes, owners, sizes, times, contents"
else
    diff "$here/before" "$here/after" | head -n 20
    die "the machine's files have changed" "did another program change them meanwhile?"
fi
