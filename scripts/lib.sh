# What the scripts that install something share; to be read by `.`.

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null 2>&1; then sudo -n "$@"; else return 1; fi
}

# Fetches the lists of Debian's packages; fails where there is no apt-get. Lists that cannot be fetched may do as they are.
apt_update() {
    command -v apt-get >/dev/null 2>&1 || return 1
    as_root apt-get update -qq || true
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}
