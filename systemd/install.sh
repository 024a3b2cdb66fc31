#!/bin/sh
# Installs envoy2emon from this checkout; run again, it upgrades. Needs root, systemd, Python 3.11 and, to install, the network.
#   sudo systemd/install.sh                install or upgrade
#   sudo systemd/install.sh --uninstall    remove all but the settings and what waits for EmonCMS
#   sudo systemd/install.sh --purge        remove these too
set -eu

checkout=$(cd "$(dirname "$0")/.." && pwd)
program=/opt/envoy2emon
command=/usr/local/bin/envoy2emon
units=/etc/systemd/system
settings=/etc/envoy2emon/.env
python=/usr/bin/python3 # Debian's own: another one may lie in a home, which the units cannot see
names='envoy2emon envoy2emon_inv'

stop() {
    echo "install.sh: $*" >&2
    exit 1
}

check_machine() {
    [ "$(id -u)" = 0 ] || stop "this takes root: sudo $0"
    [ -d /run/systemd/system ] || stop "this computer does not run systemd, which starts the daemons: nothing is changed"
}

check_python() {
    [ -x "$python" ] || stop "there is no $python: sudo apt-get install python3"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        stop "$("$python" --version) is too old: 3.11 or newer is needed, so Raspberry Pi OS bookworm or newer"
}

add_venv() { # Debian keeps ensurepip, which a virtual environment needs, in a package of its own
    "$python" -c 'import ensurepip' 2>/dev/null && return
    command -v apt-get >/dev/null || stop "Python's ensurepip is missing: install your system's package for python3-venv"
    echo "Installing python3-venv"
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -qq -y python3-venv >/dev/null 2>&1 && return
    { apt-get update -qq && apt-get install -qq -y python3-venv >/dev/null; } ||
        stop "python3-venv cannot be installed: is the network there? Nothing else is changed"
}

build() { # beside the running program, which stays as it is until the new one is whole
    trap 'rm -rf "$program.new"' EXIT
    trap 'exit 130' INT TERM HUP
    rm -rf "$program.new"
    echo "Building $program"
    if ! { "$python" -m venv "$program.new" &&
        "$program.new/bin/pip" install --quiet --no-cache-dir --disable-pip-version-check "$checkout"; }; then
        stop "the Python packages cannot be installed: is the network there? What was installed before is as it was"
    fi
    # The scripts name the folder that they were made in.
    grep -lI envoy2emon.new "$program.new"/bin/* | xargs sed -i 's/envoy2emon\.new/envoy2emon/g'
}

put_in_place() {
    rm -rf "$program.old"
    [ ! -e "$program" ] || mv "$program" "$program.old"
    mv "$program.new" "$program"
    rm -rf "$program.old"
    install -d "$(dirname "$command")" "$(dirname "$settings")"
    cat >"$command.new" <<END
#!/bin/sh
# The settings and the state of the daemons, so that \`sudo envoy2emon check\` needs no options.
export ENVOY2EMON_ENV_FILE="\${ENVOY2EMON_ENV_FILE-$settings}"
export STATE_DIRECTORY="\${STATE_DIRECTORY-/var/lib/envoy2emon}"
exec $program/bin/python -I -m envoy2emon "\$@"
END
    chmod 0755 "$command.new"
    mv "$command.new" "$command"
    for name in $names; do install -m 0644 "$checkout/systemd/$name.service" "$units/"; done
    systemctl daemon-reload
    # shellcheck disable=SC2086 # two names
    systemctl enable --quiet $names
}

known_names() { # the settings that a file names, also in a comment
    sed -n 's/^#\{0,1\} *\([A-Z][A-Z0-9_]*\)=.*/\1/p' "$1"
}

install_or_upgrade() {
    [ -f "$checkout/.env.example" ] || stop "$checkout is no complete checkout: .env.example is missing"
    check_python
    add_venv
    build
    put_in_place
    if [ ! -e "$settings" ]; then
        install -m 0600 "$checkout/.env.example" "$settings"
        echo "Installed. Next: edit $settings (sudo nano $settings), then"
        echo "    sudo systemctl restart $names"
        echo "    sudo envoy2emon check"
        return
    fi
    new=$(for name in $(known_names "$checkout/.env.example"); do
        known_names "$settings" | grep -qx "$name" || printf ' %s' "$name"
    done)
    [ -z "$new" ] || echo "New settings, described in $checkout/.env.example; $settings does without:$new"
    # shellcheck disable=SC2086 # two names
    systemctl try-restart $names || stop "installed, but it does not start: see systemctl status $names"
    echo "Installed; what ran runs anew. Next: sudo envoy2emon check"
}

uninstall() {
    # shellcheck disable=SC2086 # two names
    systemctl disable --quiet --now $names 2>/dev/null || true
    # shellcheck disable=SC2086 # two names
    systemctl reset-failed $names 2>/dev/null || true
    for name in $names; do rm -f "$units/$name.service"; done
    systemctl daemon-reload
    rm -rf "$program" "$program.new" "$program.old" "$command"
}

purge() {
    rm -rf "$(dirname "$settings")"
    for folder in lib log; do rm -rf "/var/$folder/envoy2emon" "/var/$folder/private/envoy2emon"; done
    for name in $names; do rm -rf "$units/$name.service.d"; done
}

umask 022 # the daemons' user reads what root puts here
case ${1-} in
    '')
        check_machine
        install_or_upgrade
        ;;
    --uninstall)
        check_machine
        uninstall
        echo "Removed. Kept: the settings in $settings, what waits for EmonCMS and the token in /var/lib/envoy2emon; --purge removes these"
        ;;
    --purge)
        check_machine
        uninstall
        purge
        echo "Removed, with the settings and what waited for EmonCMS"
        ;;
    *)
        sed -n '2,5s/^# \{0,1\}//p' "$0"
        exit 2
        ;;
esac
