#!/bin/sh
# Installs the device side on a machine with systemd, or brings an installed one up to date. Run it as
# often as you like: files that are there already and say the same are left alone.
set -eu

usage() {
    cat <<'END'
usage: install.sh --cloud HOST:PORT --api-key-file FILE --publisher FILE.pub [options]

  --cloud HOST:PORT    the cluster's address
  --api-key-file FILE  this device's key
  --publisher FILE     .pub file of the key that signs what devices run
  --ca FILE            PEM file of the cluster's certificate authority, if private
  --channel NAME       (stable)
  --package SPEC       what pip installs (edge-cloud-cascade): a version, a wheel
  --no-package         install no package: /opt/cascade is there already
  --root DIR           lay the configuration out under DIR, for an image: no user, no package, and
                       nothing is started

On a machine that is set up, every option keeps its value when it is left out.
END
}

fail() {
    printf 'install.sh: %s\n' "$1" >&2
    exit 2
}

cloud='' key='' publisher='' ca='' channel='' package='edge-cloud-cascade' with_package=yes root=''
while [ $# -gt 0 ]; do
    case $1 in
        --no-package) with_package=no; shift; continue ;;
        -h | --help) usage; exit 0 ;;
        --cloud | --api-key-file | --publisher | --ca | --channel | --package | --root) ;;
        *) usage >&2; fail "unknown option $1" ;;
    esac
    [ $# -ge 2 ] || fail "$1 needs a value"
    case $1 in
        --cloud) cloud=$2 ;;
        --api-key-file) key=$2 ;;
        --publisher) publisher=$2 ;;
        --ca) ca=$2 ;;
        --channel) channel=$2 ;;
        --package) package=$2 ;;
        --root) root=$2 ;;
    esac
    shift 2
done

# A venv knows its own path: one made under DIR would not run from /.
[ -z "$root" ] || with_package=no

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
etc=$root/etc/cascade
units=$root/etc/systemd/system
env_file=$etc/device.env

# value NAME: what device.env says now, or nothing.
value() {
    [ -f "$env_file" ] || return 0
    sed -n "s/^$1=//p" "$env_file" | tail -n 1
}

[ -n "$cloud" ] || cloud=$(value CASCADE_CLOUD)
[ -n "$channel" ] || channel=$(value CASCADE_CHANNEL)
[ -n "$channel" ] || channel=stable
options=$(value CASCADE_SETUP_OPTIONS)
[ -z "$ca" ] || options='--ca /etc/cascade/ca.pem'

case $cloud in
    '') fail "--cloud is missing" ;;
    *[!][A-Za-z0-9._:-]*) fail "--cloud must be host:port (it is '$cloud')" ;;
    ?*:[0-9]*) ;;
    *) fail "--cloud must be host:port (it is '$cloud')" ;;
esac
case $channel in
    *[!A-Za-z0-9._-]*) fail "--channel must be letters, digits, . _ - (it is '$channel')" ;;
esac
[ -n "$key" ] || [ -f "$etc/api-key" ] || fail "--api-key-file is missing"
[ -n "$publisher" ] || [ -f "$etc/publisher.pub" ] || fail "--publisher is missing"
for file in "$key" "$publisher" "$ca"; do
    [ -z "$file" ] || [ -r "$file" ] || fail "$file cannot be read"
done
[ -n "$root" ] || [ "$(id -u)" -eq 0 ] || fail "run it as root, or with --root DIR"

# put MODE SOURCE TARGET: copies where something changes.
put() {
    if ! cmp -s "$2" "$3"; then
        # Never readable by others, not even for a moment; whole or not at all.
        (umask 077 && cp -- "$2" "$3.new")
        chmod "$1" "$3.new"
        mv -f -- "$3.new" "$3"
        printf 'wrote %s\n' "$3"
    fi
    chmod "$1" "$3"
}

if [ -z "$root" ] && ! id cascade >/dev/null 2>&1; then
    useradd --system --home-dir /var/lib/cascade --no-create-home --shell /usr/sbin/nologin cascade
fi

mkdir -p "$etc" "$units"
chmod 0755 "$etc"
[ -z "$key" ] || put 0600 "$key" "$etc/api-key"
[ -z "$publisher" ] || put 0644 "$publisher" "$etc/publisher.pub"
[ -z "$ca" ] || put 0644 "$ca" "$etc/ca.pem"

draft=$(mktemp)
trap 'rm -f "$draft"' EXIT
{
    printf '# Written by install.sh, which keeps what it finds here.\n'
    printf 'CASCADE_CLOUD=%s\nCASCADE_CHANNEL=%s\n' "$cloud" "$channel"
    printf 'CASCADE_SETUP_OPTIONS=%s\n' "$options"
} >"$draft"
put 0644 "$draft" "$env_file"
put 0644 "$here/cascade-setup.service" "$units/cascade-setup.service"
put 0644 "$here/cascade-setup.timer" "$units/cascade-setup.timer"

if [ "$with_package" = yes ]; then
    python=''
    for candidate in python3.13 python3.12 python3.11 python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    [ -n "$python" ] || fail "Python 3.11 or newer is needed"
    [ -x /opt/cascade/bin/python ] || "$python" -m venv /opt/cascade
    /opt/cascade/bin/python -m pip install --quiet --upgrade --only-binary=:all: "$package"
fi

if [ -z "$root" ]; then
    systemctl daemon-reload
    systemctl enable --now cascade-setup.timer
    systemctl start --no-block cascade-setup.service
    printf 'set up for %s; watch it with: journalctl -fu cascade-setup\n' "$cloud"
fi
