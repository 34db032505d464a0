# Sourced by the scripts beside it, with the group to install as its argument ("run" or "dev").
# Makes .venv in the checkout if it is missing, installs localv4 (editable) when there is no stamp
# for this pyproject.toml, and sets $root and $python. All output goes to stderr. The stamp is
# written last, so an install that failed half-way is never trusted.

venv_group=$1
root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd -P)
venv=$root/.venv
python=$venv/bin/python

venv_fail() {
    echo "localv4: $1" >&2
    exit 1
}

# The newest interpreters first would pick one that numba does not support yet; python3 is what
# the user's other programs run on.
find_python() {
    local name
    for name in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14 python}; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    return 1
}

# A stamp names the checkout and what was installed: a moved checkout or a changed pyproject.toml
# asks for a new install.
stamp_text() { echo "$1 $root $(cksum <"$root/pyproject.toml")"; }
stamped() {
    [ -x "$python" ] || return 1
    [ "$(cat "$venv/.localv4-dev" 2>/dev/null)" = "$(stamp_text dev)" ] && return 0
    [ "$venv_group" = run ] && [ "$(cat "$venv/.localv4-run" 2>/dev/null)" = "$(stamp_text run)" ]
}

install_venv() {
    local base output made=no
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        base=$(find_python) || venv_fail \
            "Python 3.11 or newer is needed and none was found; install one, or name it: PYTHON=/path/to/python3.11 $0"
        echo "localv4: making $venv and installing NumPy, Numba and others (once; a minute, more on a slow connection) ..." >&2
        made=yes
        # An interrupted first install leaves nothing behind.
        trap 'rm -rf "$venv"' EXIT
        trap 'exit 130' INT
        trap 'exit 143' TERM
        "$base" -m venv --clear "$venv" >&2 || venv_fail \
            "could not make $venv; on Debian and Ubuntu install python3-venv, then try again"
    else
        echo "localv4: installing what pyproject.toml asks for into $venv ..." >&2
    fi
    rm -f "$venv/.localv4-run" "$venv/.localv4-dev"
    local pip=("$python" -m pip --quiet --disable-pip-version-check)
    # pip is silent unless it fails: build tools warn about what is meant to be so.
    # --group is new in pip 25.1.
    if ! output=$({
        "${pip[@]}" install --upgrade "pip>=25.1" &&
            "${pip[@]}" install --editable "$root" &&
            { [ "$venv_group" = run ] || (cd "$root" && "${pip[@]}" install --group dev); }
    } 2>&1); then
        tail -n 20 <<<"$output" >&2
        venv_fail "the install failed; check the connection and the disk, then run this again"
    fi
    stamp_text "$venv_group" >"$venv/.localv4-$venv_group"
    [ "$made" = no ] || echo "localv4: done; it is $venv/bin/localv4, too" >&2
    [ "$made" = no ] || trap - EXIT INT TERM
}

if ! stamped; then
    # Two first runs at once take turns, where the system has flock.
    if command -v flock >/dev/null; then
        exec 9>"$root/.venv.lock"
        flock 9
    fi
    stamped || install_venv
    exec 9>&-
fi
