#!/bin/sh
# Builds the container image from the Dockerfile, runs it as the README says, and then runs deploy/compose.yaml: by Docker, else
# by Podman. Where the images that they stand on cannot be pulled, stand-ins are made from Debian's packages (by root alone), in
# a storage of Podman's that goes with them. What cannot be checked is told and left out. It removes what it made.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

name=streamkeep-check-$$
folder=$(mktemp -d)
engine= compose= stand_ins= began=$(date +%s)

say() { echo "image-check: $* ($(($(date +%s) - began)) s)" >&2; }
left_out() { echo "WARNING: image-check: $1: LEFT OUT, $2" >&2; }
fail() {
    echo "image-check: FAILED: $*" >&2
    exit 1
}

# Unmounts what debootstrap or Podman mounted in a folder, the innermost first.
unmount() {
    for point in $(awk -v folder="$1/" 'index($2, folder) == 1 { print $2 }' /proc/mounts | sort -r); do
        umount "$point" || true
    done
}

clean() {
    status=$?
    trap - EXIT
    set +e
    if [ -n "$engine" ] && [ "$status" != 0 ]; then
        for container in $("$engine" ps --all --quiet --filter "name=$name"); do
            "$engine" logs --tail 20 "$container" >&2
        done
    fi
    if [ -n "$engine" ]; then
        [ -z "$compose" ] || in_compose down --volumes
        "$engine" rm --force --volumes "$name"
        "$engine" volume rm "$name"
        "$engine" rmi "localhost/$name" || "$engine" rmi "$name"
    fi >"$folder/clean.log" 2>&1
    if [ -n "$stand_ins" ]; then
        podman rm --all --force --volumes >>"$folder/clean.log" 2>&1
        unmount "$folder"
    fi
    rm -rf --one-file-system "$folder"
    exit "$status"
}
trap clean EXIT
trap 'exit 1' HUP INT TERM

# The images that the Dockerfile and the composition stand on.
bases() {
    sed -n 's/^FROM \([^ ]*\).*/\1/p' Dockerfile
    sed -n 's/^ *image: \(docker\.io.*\)/\1/p' deploy/compose.yaml
}

pulled() {
    for image in $(bases); do
        "$1" pull --quiet "$image" >/dev/null 2>"$folder/pull" || { cat "$folder/pull" >&2; return 1; }
    done
}

# A storage, networks and limits of its own: nothing of this machine's Podman is touched, and no limit asked for that may be
# above this machine's.
private_podman() {
    cat >"$folder/storage.conf" <<END
[storage]
driver = "overlay"
graphroot = "$folder/storage"
runroot = "$folder/run"
END
    cat >"$folder/containers.conf" <<END
[containers]
default_ulimits = ["nofile=1000:1000", "nproc=1000:1000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
network_config_dir = "$folder/networks"
END
    export CONTAINERS_STORAGE_CONF="$folder/storage.conf" CONTAINERS_CONF="$folder/containers.conf" BUILDAH_ISOLATION=chroot
}

# build_stand_in IMAGE COMMAND: as IMAGE, Debian after this command.
build_stand_in() {
    printf 'FROM %s\n%s\n' "$debian" "$2" | podman build --network host --tag "$1" - >"$folder/build" 2>&1 || {
        tail -n 20 "$folder/build" >&2
        fail "there is no stand-in for $1"
    }
}

make_stand_ins() {
    debian=$(bases | grep /debian:) rust=$(bases | grep /rust:) valkey=$(bases | grep /valkey:) nginx=$(bases | grep /nginx:)
    release=${debian##*:} release=${release%-slim}
    install='RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends'
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $release" 2>/dev/null | head -n 1)
    # Without a mirror debootstrap takes Debian's own.
    debootstrap --variant=minbase "$release" "$folder/debian" ${mirror:+"$mirror"} >"$folder/debootstrap" 2>&1 || {
        tail -n 5 "$folder/debootstrap" >&2
        left_out "the image and the composition" "Debian's packages cannot be had"
        exit 0
    }
    tar -C "$folder/debian" --one-file-system -c . | podman import --quiet - "$debian" >/dev/null
    unmount "$folder/debian"
    rm -rf --one-file-system "$folder/debian"
    build_stand_in "$rust" "$install gcc g++ make cmake
ENV PATH=/toolchain/bin:/usr/bin:/bin:/usr/sbin:/sbin CARGO_HOME=/cargo CARGO_HTTP_CAINFO=/ca-certificates.crt"
    # Debian has no Valkey yet; what is asked of it here, Redis answers alike.
    build_stand_in "$valkey" "$install redis-server \\
&& ln -s redis-server /usr/bin/valkey-server && ln -s redis-cli /usr/bin/valkey-cli
WORKDIR /data"
    build_stand_in "$nginx" "$install nginx-light && rm /etc/nginx/sites-enabled/default"
}

choose_engine() {
    if docker info >/dev/null 2>&1 && pulled docker; then
        engine=docker
        return
    fi
    packages="podman runc netavark aardvark-dns iptables debootstrap"
    command -v podman >/dev/null 2>&1 || { apt_update && apt_install $packages >/dev/null; } || return 1
    engine=podman
    ! pulled podman || return 0
    say "no images can be pulled; stand-ins are made from Debian's packages"
    [ "$(id -u)" = 0 ] && apt_update && apt_install $packages >/dev/null || return 1
    # Only then is what is removed in the end that of this check alone.
    private_podman && stand_ins=yes
}

build_image() {
    if [ -n "$stand_ins" ]; then
        # The machine's own compiler and certificates, for as long as the build lasts.
        set -- --network host --volume "$(rustc --print sysroot):/toolchain:ro" \
            --volume "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}:/ca-certificates.crt:ro"
        settings=${CARGO_HOME:-$HOME/.cargo}/config.toml
        [ ! -f "$settings" ] || set -- "$@" --volume "$settings:/cargo/config.toml:ro"
    fi
    # Podman's own format of images has no health check.
    BUILDAH_FORMAT=docker "$engine" build --tag "$name" "$@" . >"$folder/build" 2>&1 ||
        { tail -n 30 "$folder/build" >&2; fail "the image cannot be built"; }
}

# eventually SECONDS WHAT COMMAND: until the command succeeds.
eventually() {
    end=$(($(date +%s) + $1)) what=$2
    shift 2
    until "$@" >"$folder/last" 2>&1; do
        [ "$(date +%s)" -lt "$end" ] || { cat "$folder/last" >&2; fail "not in time: $what"; }
        sleep 0.2
    done
}

# Podman leaves the regular look to systemd, which is not everywhere; so it is asked for.
healthy() {
    if [ "$engine" = podman ]; then
        podman healthcheck run "$1"
    else
        [ "$(docker inspect --format '{{.State.Health.Status}}' "$1")" = healthy ]
    fi
}

append() {
    curl --silent --show-error --fail --max-time 10 "$1/streams/order-1/events" -H 'Content-Type: application/json' \
        -d "{\"events\":[{\"id\":\"$2\",\"type\":\"order-placed\",\"data\":{\"total\":42.50}}]}"
}

# That the stream has these events and no others: shows URL ID ...
shows() {
    url=$1
    shift
    found=$(curl --silent --show-error --fail --max-time 10 "$url/streams/order-1") || return 1
    ids=$(echo "$found" | grep -o '"id":"[^"]*"' | sed 's/"id":"\(.*\)"/\1/' | xargs)
    [ "$ids" = "$*" ] || { echo "$* expected: $found"; return 1; }
}

address() { echo "http://$("$engine" port "$1" "$2" | head -n 1)"; }

check_container() {
    "$engine" run --detach --name "$name" --publish 127.0.0.1::7070 --volume "$name:/data" --read-only --tmpfs /tmp \
        --cap-drop ALL "$name" >/dev/null
    eventually 60 "the container is healthy" healthy "$name"
    url=$(address "$name" 7070)
    eventually 10 "an append" append "$url" first
    [ "$("$engine" exec "$name" id -u)" = 10001 ] || fail "it runs as another user than 10001"
    ! "$engine" exec "$name" touch /here 2>/dev/null || fail "its files can be written"
    "$engine" stop --time 10 "$name" >/dev/null
    code=$("$engine" inspect --format '{{.State.ExitCode}}' "$name")
    [ "$code" = 0 ] || fail "it ended with $code, not 0"
    "$engine" start "$name" >/dev/null
    eventually 60 "the container is healthy again" healthy "$name"
    eventually 10 "the event after a restart" shows "$(address "$name" 7070)" first
    "$engine" stop --time 10 "$name" >/dev/null
    say "the container is well"
}

in_compose() { (cd "$folder/deploy" && $compose --project-name "$name" --file compose.yaml "$@"); }

# The container of a service of the composition.
container() {
    "$engine" ps --all --quiet --filter "label=com.docker.compose.project=$name" --filter "label=com.docker.compose.service=$1"
}

choose_compose() {
    if [ "$engine" = docker ]; then
        docker compose version >/dev/null 2>&1 && compose="docker compose"
    else
        scripts/ensure-tool.sh python3 && venv=$(scripts/venv.sh tests/image/requirements.txt) && compose="$venv/bin/podman-compose"
    fi
}

# Starts the composition, one after another, for not every podman-compose waits for the health of what a service depends on.
start_composition() {
    for service in redis one two nginx; do
        in_compose up --detach "$service" >"$folder/up" 2>&1 || { tail -n 20 "$folder/up" >&2; fail "$service does not start"; }
        [ "$service" = nginx ] || eventually 60 "$service is healthy" healthy "$(container "$service")"
    done
    url=$(address "$(container nginx)" 8080)/events-store
    eventually 60 "ready behind nginx" curl --silent --show-error --fail --max-time 10 "$url/readyz"
}

check_composition() {
    choose_compose || { left_out deploy/compose.yaml "neither docker compose nor podman-compose is to be had"; return 0; }
    mkdir "$folder/deploy"
    cp deploy/nginx.conf "$folder/deploy/"
    # The image that was built above, and a port that is free.
    sed "s/image: streamkeep\$/image: $name/; s/\"127.0.0.1:8080:8080\"/\"127.0.0.1::8080\"/; s|context: \.\.|context: $PWD|" \
        deploy/compose.yaml >"$folder/deploy/compose.yaml"
    start_composition
    # A name server of Podman's that takes in a new container loses questions now and then, and a resolver waits 5 s for each.
    eventually 60 "an append behind nginx" append "$url" first
    eventually 10 "the event behind nginx" shows "$url" first
    "$engine" stop --time 30 "$(container one)" >/dev/null
    eventually 30 "an append at the other instance" append "$url" second
    eventually 30 "both events at the other instance" shows "$url" first second
    in_compose down >"$folder/down" 2>&1 || { tail -n 20 "$folder/down" >&2; fail "the composition does not end"; }
    start_composition
    eventually 10 "both events after all was replaced" shows "$url" first second
    say "the composition is well"
}

choose_engine || { left_out "the image and the composition" "neither Docker nor Podman can be used here"; exit 0; }
[ -z "$stand_ins" ] || make_stand_ins
say "checking by $engine"
build_image
say "the image is built"
check_container
check_composition
[ -z "$stand_ins" ] || left_out "the images of Docker Hub" "stand-ins from Debian's packages were taken"
