# Sourced by bash: the virtual environment with the real LMCache, which the tests of the mounts and `bench/peers` use.
#
# make_environment makes it once for these versions, under $SALTERN_MOUNT_VENV (default ~/.cache/saltern/mount-venv), and
# uses it again; $PYTHON chooses the interpreter. install_saltern builds the package of this tree into it.
# shellcheck shell=bash

lmcache_version=0.5.6
nixl_version=1.5.1
python=${PYTHON:-python3}

# What an installation takes at its peak, downloads included.
environment_gib=14

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# A digest of everything that decides what is installed: when it changes, another environment is made.
environment_name() {
    local version digest
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    digest=$(sha256sum <"$repository/tests/mount/constraints.txt" | cut -c 1-8)
    echo "lmcache-$lmcache_version-nixl-$nixl_version-py$version-$digest"
}

make_environment() {
    local base free_kib
    base=${SALTERN_MOUNT_VENV:-$HOME/.cache/saltern/mount-venv}
    environment=$base/$(environment_name)
    if [ ! -e "$environment/.complete" ]; then
        mkdir -p "$base"
        free_kib=$(df --output=avail -k "$base" | tail -n 1)
        if [ "$free_kib" -lt $((environment_gib << 20)) ]; then
            echo "$base has $((free_kib >> 20)) GiB free; LMCache needs $environment_gib (SALTERN_MOUNT_VENV names another place)" >&2
            return 1
        fi
        echo "making $environment (some minutes, about 10 GB)"
        # `|| return`: a function called in a condition does not stop at errors by itself.
        "$python" -m venv --clear "$environment" || return
        # pip needs an hour to find versions that fit together here; uv needs seconds.
        "$environment/bin/pip" install --quiet --disable-pip-version-check "uv>=0.5" || return
        "$environment/bin/uv" pip install --quiet --no-cache --python "$environment/bin/python" \
            --constraint "$repository/tests/mount/constraints.txt" \
            "lmcache==$lmcache_version" "nixl==$nixl_version" "maturin>=1.7,<2" pytest pytest-timeout mypy || return
        touch "$environment/.complete" || return
    fi
    export PATH="$environment/bin:$PATH" LMCACHE_TRACK_USAGE=false LMCACHE_DISABLE_BANNER=1
}

install_saltern() {
    pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --force-reinstall \
        "$repository/tools/lmcache"
}
