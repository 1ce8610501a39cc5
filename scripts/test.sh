#!/bin/sh
# Run every check: lint, format, types, tests.
#
# usage: scripts/test.sh [--full] [PYTEST-ARGUMENT...]
#
# Makes .venv and installs into it what the tests need. On Debian, as root,
# missing system packages are installed too; otherwise they are named. PYTHON
# may name the interpreter. --full runs the long tests too and, as root, those
# suites of tests/conformance whose folder is given in the environment.
set -eu
cd "$(dirname "$0")/.."

full=
if [ "${1-}" = --full ]; then
    full=yes
    shift
fi

say() {
    printf '%s\n' "== $*"
}

die() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
    exit 1
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    # A bare python3 first: it is what people mean. /usr/bin is not first on every PATH.
    for candidate in ${PYTHON:+"$PYTHON"} \
        python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
        if new_enough "$candidate"; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
}

missing_packages() {
    # Debian's names of what is not here.
    if [ -z "$python" ]; then
        echo python3 python3-venv python3-dev
    else
        "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
        header='import os, sysconfig; print(os.path.join(sysconfig.get_paths()["include"], "Python.h"))'
        [ -e "$("$python" -c "$header")" ] || echo python3-dev
    fi
    command -v fusermount3 >/dev/null || echo fuse3
    command -v setfacl >/dev/null || echo acl
    command -v setfattr >/dev/null || echo attr
    command -v newuidmap >/dev/null || echo uidmap
    command -v fuse-overlayfs >/dev/null || echo fuse-overlayfs
    command -v unshare >/dev/null || echo util-linux
    command -v mount >/dev/null || echo mount
    command -v git >/dev/null || echo git
    command -v pasta >/dev/null || echo passt
    command -v slirp4netns >/dev/null || echo slirp4netns
    command -v skopeo >/dev/null || echo skopeo
    command -v docker-registry >/dev/null || echo docker-registry
    command -v htpasswd >/dev/null || echo apache2-utils
    command -v umoci >/dev/null || echo umoci
    command -v crun >/dev/null || echo crun
    command -v bwrap >/dev/null || echo bubblewrap
    command -v gcc >/dev/null || echo gcc libc6-dev
    command -v pkg-config >/dev/null || echo pkg-config
    pkg-config --exists fuse3 2>/dev/null || echo libfuse3-dev
    if [ -n "$full" ]; then
        command -v mmdebstrap >/dev/null || echo mmdebstrap
    fi
}

python=$(find_python)
packages=$(missing_packages | tr '\n' ' ')
if [ -n "$packages" ]; then
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        die "not installed: $packages" "on Debian, as root: apt-get install $packages"
    fi
    say "installing $packages"
    apt-get update -q
    # shellcheck disable=SC2086 # one word a package
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $packages
    python=$(find_python)
    [ -n "$python" ] || die "no Python 3.11 or later"
fi

# .venv is made anew when it was made by another interpreter or from another pyproject.toml.
stamp="$("$python" -c 'import sys; print(sys.executable, sys.version)') $(cksum pyproject.toml)"
if [ "$(cat .venv/stamp 2>/dev/null)" != "$stamp" ]; then
    say "making .venv with $python"
    "$python" -m venv --clear .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test,pyfuse3,bench]'
    printf '%s\n' "$stamp" >.venv/stamp
fi
PATH=$PWD/.venv/bin:$PATH
export PATH

say "ruff"
ruff check .
ruff format --check .
say "mypy"
mypy

if [ -n "$full" ]; then
    PYUNION=$PWD/.venv/bin/pyunion
    export PYUNION
    for suite in pjdfstest:PJDFSTEST_DIR unionmount:UNIONMOUNT_DIR fsx:FSX_DIR \
        fsstress:FSSTRESS_DIR stress_ng:STRESS_NG_DIR; do
        name=${suite%%:*}
        variable=${suite#*:}
        if [ "$(id -u)" -ne 0 ]; then
            say "$name: not run, it needs root"
        elif [ -z "$(printenv "$variable")" ]; then
            say "$name: not run, $variable does not name its folder"
        else
            say "$name"
            "tests/conformance/run_$name"
        fi
    done

    say "the union compiled: the tests that see it from outside"
    compiled=$(mktemp -d)
    trap 'rm -rf "$compiled"' EXIT
    git ls-files -z | xargs -0 cp --parents -t "$compiled"
    (
        cd "$compiled"
        PYUNION_COMPILE=1 python setup.py --quiet build_ext --inplace
        PYTHONPATH=$compiled
        export PYTHONPATH
        python -c 'from unionfs import compiled; assert compiled()'
        python -m pytest -q -p no:cacheprovider -p tests.skips tests/test_mount.py \
            tests/test_passthrough.py tests/test_state.py tests/test_rename.py tests/test_index.py \
            tests/test_diff.py tests/test_fsck.py tests/test_fsck_portable.py tests/test_masks.py \
            tests/store/test_union.py
    )
    rm -rf "$compiled"
    trap - EXIT
fi

say "pytest"
# tests.skips: a skip that tests/allowed_skips.txt does not allow is a failure.
python -m pytest tests -q -p no:cacheprovider -p tests.skips ${full:+--full} "$@"
