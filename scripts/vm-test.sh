#!/bin/sh
# Try pyrun's limits on cgroup v2 with systemd, in a virtual machine.
#
# usage: scripts/vm-test.sh [DIRECTORY]
#
# Makes a small Debian with its cloud kernel in DIRECTORY (default: a temporary
# one, removed at the end) and boots it in qemu. ACCEL=kvm is faster where it
# works; some nested machines have the device and hang. Needs root, mmdebstrap,
# qemu-system-x86 and e2fsprogs. Exit code 0: every check passed.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)

say() {
    printf '%s\n' "== $*"
}

die() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
    exit 1
}

[ "$(id -u)" -eq 0 ] || die "making a Debian tree needs root"
for program in mmdebstrap qemu-system-x86_64 mke2fs; do
    command -v "$program" >/dev/null ||
        die "$program is not installed" "apt-get install mmdebstrap qemu-system-x86 e2fsprogs"
done

if [ $# -gt 0 ]; then
    here=$1
    mkdir -p "$here"
else
    here=$(mktemp -d "${TMPDIR:-/var/tmp}/pyrun-vm.XXXXXX")
    trap 'rm -rf --one-file-system "$here"' EXIT
    trap 'exit 130' INT TERM HUP
fi

if [ ! -e "$here/tree/etc/debian_version" ]; then
    say "making a Debian tree"
    mmdebstrap --quiet --variant=minbase --format=directory \
        --include=linux-image-cloud-amd64,initramfs-tools,systemd-sysv,dbus-user-session \
        --include=libpam-systemd,python3,uidmap,fuse3,kmod,udev \
        bookworm "$here/tree"
fi
tree=$here/tree

say "putting pyrun and its checks into it"
rm -rf "$tree/opt/pyunion"
mkdir -p "$tree/opt/pyunion"
cp -R "$root/runtime" "$root/unionfs" "$root/cowstore" "$tree/opt/pyunion/"
cat >"$tree/usr/local/bin/pyrun" <<'EOF'
#!/bin/sh
PYTHONPATH=/opt/pyunion exec /usr/bin/python3 -m runtime "$@"
EOF
cat >"$tree/opt/pyunion/checks" <<'EOF'
#!/bin/sh
# Runs in the machine, as root and once more as an ordinary user.
failed=0
check() {
    what=$1 wanted=$2
    shift 2
    got=$("$@" 2>&1)
    case $got in
    $wanted) echo "PASS $(id -un): $what" ;;
    *) echo "FAIL $(id -un): $what: wanted '$wanted', got '$got'"; failed=1 ;;
    esac
}
run() {
    pyrun run --rm --network none --rootfs / "$@"
}
check "a container starts" "in" run echo in
check "memory" "*137" run --memory 48m sh -c 'head -c 300m /dev/zero | tail >/dev/null; echo $?'
check "memory is what is shown inside" "50331648" run --memory 48m cat /sys/fs/cgroup/memory.max
check "pids" "*annot fork*" run --pids-limit 8 sh -c 'for i in 1 2 3 4 5 6 7 8 9; do sleep 2 & done; wait'

pyrun run -d --name c --network none --cpus 0.5 --memory 100m --rootfs / sleep 1000 >/dev/null
group=$(pyrun inspect --format '{{.Cgroup.parent}}/{{.Cgroup.name}}' c)
check "the cpu limit is the outer group's" "50000 100000" cat "$group/cpu.max"
check "the union's daemon is not in the container's group" "1" \
    sh -c "wc -l <$group/union/cgroup.procs"
check "exec joins the container's group" "[3-9]" \
    pyrun exec c grep -c . /sys/fs/cgroup/cgroup.procs
pyrun update --memory 60m c >/dev/null
check "update" "62914560" cat "$group/container/memory.max"
pyrun pause c >/dev/null
check "pause" "paused" pyrun ps --format '{{.Status}}'
check "the daemon is not frozen" "0" cat "$group/union/cgroup.freeze"
pyrun unpause c >/dev/null
check "stats come from the cgroup" "cgroup" pyrun stats --format '{{.Source}}' c
pyrun rm -f c >/dev/null
check "no group is left" "" find /sys/fs/cgroup -name 'pyrun-*' -user "$(id -u)" -path '*container*'
if [ "$(id -u)" -eq 0 ]; then
    try='exec 2>/dev/null; (exec 3</dev/fuse) && echo -n read; (exec 3>/dev/fuse) && echo -n written
        echo x >/dev/null && echo -n null; (exec 3<>/dev/ptmx) && echo -n ptmx'
    check "a device may be read and not written" "readnullptmx" run --device /dev/fuse:/dev/fuse:r sh -c "$try"
    check "a device may be read and written" "readwrittennullptmx" run --device /dev/fuse sh -c "$try"
    check "devices that no rule names are refused" "nullptmx" \
        run --device-cgroup-rule 'c 42:* r' --volume /dev/fuse:/dev/fuse sh -c "$try"
    check "devices that a rule names are not" "readwrittennullptmx" \
        run --device-cgroup-rule 'c 10:229 rw' --volume /dev/fuse:/dev/fuse sh -c "$try"
    pyrun run -d --name d --network none --device /dev/fuse:/dev/fuse:r --rootfs / sleep 1000 >/dev/null
    check "device rules hold for exec" "readnullptmx" pyrun exec d sh -c "$try"
    pyrun rm -f d >/dev/null
else
    check "device rules need root" "*cannot be enforced*bpf*as root*" run --device-cgroup-rule 'c 1:3 r' true
fi
exit $failed
EOF
cat >"$tree/opt/pyunion/main" <<'EOF'
#!/bin/sh
exec >/dev/ttyS1 2>&1
stty -F /dev/ttyS1 raw
code=0
/opt/pyunion/checks || code=1
chmod 666 /dev/fuse
loginctl enable-linger tester
for _ in $(seq 100); do
    [ -S /run/user/1000/systemd/private ] && break
    sleep 0.5
done
runuser -u tester -- env HOME=/home/tester XDG_RUNTIME_DIR=/run/user/1000 \
    /opt/pyunion/checks || code=1
echo "VM-TEST-CODE $code"
systemctl poweroff
EOF
chmod 755 "$tree/usr/local/bin/pyrun" "$tree/opt/pyunion/checks" "$tree/opt/pyunion/main"
cat >"$tree/etc/systemd/system/pyrun-test.service" <<'EOF'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/opt/pyunion/main
[Install]
WantedBy=default.target
EOF
mkdir -p "$tree/etc/systemd/system/default.target.wants"
ln -sf ../pyrun-test.service "$tree/etc/systemd/system/default.target.wants/"
chroot "$tree" systemctl set-default multi-user.target >/dev/null 2>&1
chroot "$tree" id tester >/dev/null 2>&1 || chroot "$tree" useradd -m -u 1000 tester
grep -q '^tester:' "$tree/etc/subuid" || echo tester:100000:65536 >>"$tree/etc/subuid"
grep -q '^tester:' "$tree/etc/subgid" || echo tester:100000:65536 >>"$tree/etc/subgid"
echo fuse >"$tree/etc/modules-load.d/fuse.conf"
printf '/dev/vda / ext4 defaults 0 1\n' >"$tree/etc/fstab"

say "making its disk"
rm -f "$here/disk" "$here/results"
mke2fs -q -t ext4 -d "$tree" "$here/disk" 3G

say "booting"
timeout 1200 qemu-system-x86_64 -machine "q35,accel=${ACCEL:-tcg}" -cpu max -m 1024 -smp 2 -display none \
    -no-reboot -drive "file=$here/disk,format=raw,if=virtio" \
    -kernel "$(echo "$tree"/boot/vmlinuz-*)" -initrd "$(echo "$tree"/boot/initrd.img-*)" \
    -append "root=/dev/vda rw console=ttyS0 quiet systemd.show_status=0" \
    -serial mon:stdio -serial "file:$here/results" </dev/null >"$here/console" 2>&1 ||
    die "qemu failed or took too long" "see $here/console"
grep -E '^(PASS|FAIL) ' "$here/results" || die "the checks did not run" "see $here/results"
grep -q '^VM-TEST-CODE 0' "$here/results" || die "a check failed"
say "passed"
