#!/usr/bin/env bash
# Puts editors that speak inline completion on a Debian machine whose own packages are older.
#
#   editors/get-editors.sh DEST neovim|helix ...
#
# Downloads the packages of a newer Debian suite from the machine's own mirror, checks their signatures with the
# system's keyring, and unpacks them with their own C library under DEST. The system is not changed and no root is needed.
# The editors are then DEST/nvim and DEST/hx. An editor that is already there is left alone.
#
# This nvim serves tests: --headless, --embed, --remote-ui. On a terminal it cannot start its own second process; use
# `nvim --headless --listen SOCKET` and `nvim --remote-ui --server SOCKET`, as docs/capture.py does.
set -euo pipefail

SUITE=${MULTICODER_EDITOR_SUITE:-forky}

fail() {
    echo "get-editors: $*" >&2
    exit 1
}

# The first package mirror in the system's sources, of the deb822 form or the one-line form.
mirror() {
    local uri
    uri=$(sed -n 's/^URIs:[[:space:]]*\([^[:space:]]*\).*/\1/p' /etc/apt/sources.list.d/*.sources 2>/dev/null | head -n 1)
    if [ -z "$uri" ]; then
        uri=$(sed -n 's/^deb[[:space:]]\{1,\}\(\[[^]]*\][[:space:]]*\)\{0,1\}\([^[:space:]]*\).*/\2/p' \
            /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null | head -n 1)
    fi
    [ -n "$uri" ] || fail "no package mirror in /etc/apt/sources.list*"
    echo "$uri"
}

# Runs apt-get with lists, cache and status of its own, so that the system's are neither used nor touched.
private_apt() {
    apt-get -q \
        -o Dir::Etc::sourcelist="$DEST/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::State="$DEST/apt/state" -o Dir::State::status="$DEST/apt/status" -o Dir::Cache="$DEST/apt/cache" \
        -o APT::Install-Recommends=false -o APT::Sandbox::User="$(id -un)" -o Debug::NoLocking=1 -o Acquire::Retries=3 "$@"
}

download() {
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -r "$keyring" ] || fail "$keyring is missing (package debian-archive-keyring)"
    mkdir -p "$DEST/apt/state/lists/partial" "$DEST/apt/cache/archives/partial"
    : >"$DEST/apt/status"
    echo "deb [signed-by=$keyring] $(mirror) $SUITE main" >"$DEST/apt/sources.list"
    private_apt update
    private_apt install --yes --download-only "$@"
}

unpack() {
    local package
    mkdir -p "$DEST/root"
    for package in "$DEST"/apt/cache/archives/*.deb; do
        dpkg-deb --extract "$package" "$DEST/root"
    done
    rm -rf "$DEST/apt/cache" "$DEST/apt/state"
}

# launcher NAME PROGRAM [ENVIRONMENT]: a script that starts PROGRAM with the unpacked loader and libraries.
launcher() {
    local libraries loader
    libraries=$DEST/root/usr/lib/$(library_triplet)
    loader=$(find "$libraries" "$DEST/root/usr/lib64" "$DEST/root/usr/lib" -maxdepth 1 -name 'ld-linux*.so.*' 2>/dev/null | head -n 1)
    [ -n "$loader" ] || fail "no dynamic loader under $DEST/root"
    cat >"$DEST/$1" <<SCRIPT
#!/bin/sh
${3:+export $3}
exec '$loader' --library-path '$libraries' --argv0 '$1' '$DEST/root/usr/bin/$2' "\$@"
SCRIPT
    chmod +x "$DEST/$1"
    "$DEST/$1" --version >/dev/null || fail "$DEST/$1 was unpacked but does not start"
}

# The folder name of this architecture's libraries, without needing dpkg-dev.
library_triplet() {
    case $(dpkg --print-architecture) in
    amd64) echo x86_64-linux-gnu ;;
    arm64) echo aarch64-linux-gnu ;;
    *) fail "no launcher for the architecture $(dpkg --print-architecture)" ;;
    esac
}

[ $# -ge 2 ] || fail "usage: editors/get-editors.sh DEST neovim|helix ..."
mkdir -p "$1"
DEST=$(cd "$1" && pwd)
shift

packages=()
for editor in "$@"; do
    case $editor in
    neovim) [ -x "$DEST/nvim" ] || packages+=(neovim) ;;
    helix) [ -x "$DEST/hx" ] || packages+=(hx) ;;
    *) fail "unknown editor '$editor': expected neovim or helix" ;;
    esac
done
if [ ${#packages[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || fail "this machine has no apt-get; install the editors in its own way"
    download "${packages[@]}"
    unpack
fi
for package in ${packages[@]+"${packages[@]}"}; do
    case $package in
    neovim)
        lua=$DEST/root/usr/lib/$(library_triplet)/lua/5.1
        launcher nvim nvim "VIMRUNTIME='$DEST/root/usr/share/nvim/runtime' LUA_CPATH='$lua/?.so;;'"
        ;;
    hx) launcher hx hx "HELIX_RUNTIME='$DEST/root/usr/lib/hx/runtime'" ;;
    esac
done
[ ! -x "$DEST/nvim" ] || "$DEST/nvim" --version | head -n 1
[ ! -x "$DEST/hx" ] || "$DEST/hx" --version
