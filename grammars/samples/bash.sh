#!/usr/bin/env bash
# Snapshot a directory into dated archives and keep only the newest ones.
set -euo pipefail

readonly PROGRAM="${0##*/}"
KEEP=7
COMPRESS="gzip"
VERBOSE=false

usage() {
    cat <<EOF
Usage: $PROGRAM [-k COUNT] [-z gzip|xz] [-v] SOURCE DESTINATION

Archives SOURCE into DESTINATION and deletes all but the newest COUNT archives.
EOF
}

log() {
    local level="$1"
    shift
    if [[ "$level" == "debug" && "$VERBOSE" != true ]]; then
        return 0
    fi
    printf '%s [%s] %s\n' "$(date +%H:%M:%S)" "$level" "$*" >&2
}

die() {
    log error "$@"
    exit 1
}

extension_for() {
    case "$1" in
        gzip) echo "tar.gz" ;;
        xz) echo "tar.xz" ;;
        *) die "unknown compressor: $1" ;;
    esac
}

create_archive() {
    local source="$1" destination="$2"
    local name archive
    name="$(basename "$source")-$(date +%Y%m%d-%H%M%S)"
    archive="$destination/$name.$(extension_for "$COMPRESS")"
    log debug "writing $archive"
    tar --create --"$COMPRESS" --file "$archive.part" --directory "$(dirname "$source")" "$(basename "$source")"
    mv -- "$archive.part" "$archive"
    echo "$archive"
}

prune_archives() {
    local destination="$1" prefix="$2"
    local -a archives=()
    mapfile -t archives < <(find "$destination" -maxdepth 1 -name "$prefix-*.tar.*" | sort --reverse)
    local count=${#archives[@]}
    for ((i = KEEP; i < count; i++)); do
        log info "removing ${archives[$i]}"
        rm -- "${archives[$i]}"
    done
}

while getopts ":k:z:vh" option; do
    case "$option" in
        k) KEEP="$OPTARG" ;;
        z) COMPRESS="$OPTARG" ;;
        v) VERBOSE=true ;;
        h)
            usage
            exit 0
            ;;
        *) die "unknown option: -$OPTARG" ;;
    esac
done
shift $((OPTIND - 1))

[[ $# -eq 2 ]] || {
    usage >&2
    exit 2
}
[[ -d "$1" ]] || die "no such directory: $1"
mkdir -p "$2"

archive="$(create_archive "${1%/}" "$2")"
log info "created $archive ($(du -h "$archive" | cut -f1))"
prune_archives "$2" "$(basename "${1%/}")"
