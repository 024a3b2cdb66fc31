#!/bin/sh
# Installs envoy2emon from this checkout, or upgrades it. Needs root, systemd, Python 3.11 and, to install, the network.
#   sudo systemd/install.sh                install or upgrade
#   sudo systemd/install.sh --uninstall    remove all but the settings, the backlog, the token and the logs
#   sudo systemd/install.sh --purge        remove those too
set -eu

checkout=$(cd "$(dirname "$0")/.." && pwd)
program=/opt/envoy2emon
command=/usr/local/bin/envoy2emon
units=/etc/systemd/system
settings=/etc/envoy2emon/.env
# Debian's own: another may be in a home directory, which the units cannot see. Always with -I, because root must not run a
# module that happens to be in the current folder.
python=/usr/bin/python3
names='envoy2emon envoy2emon_inv'

stop() {
    echo "install.sh: $*" >&2
    exit 1
}

check_machine() {
    [ "$(id -u)" = 0 ] || stop "it must be run as root: sudo $0"
    [ -d /run/systemd/system ] || stop "this computer does not run systemd, which starts the daemons: nothing was changed"
}

check_python() {
    [ -x "$python" ] || stop "there is no $python: sudo apt-get install python3"
    "$python" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        stop "$("$python" --version) is too old: 3.11 or newer is needed, so Raspberry Pi OS bookworm or newer"
}

add_venv() { # Debian has ensurepip, which a virtual environment needs, in a separate package
    "$python" -I -c 'import ensurepip' 2>/dev/null && return
    command -v apt-get >/dev/null || stop "Python's ensurepip is missing: install your system's package for python3-venv"
    echo "Installing python3-venv"
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -qq -y python3-venv >/dev/null 2>&1 && return
    { apt-get update -qq && apt-get install -qq -y python3-venv >/dev/null; } ||
        stop "python3-venv cannot be installed: is there a network? Nothing else was changed"
}

build() { # beside the running program, which stays as it is until the new one is complete
    trap 'rm -rf "$program.new"' EXIT
    trap 'exit 130' INT TERM HUP
    rm -rf "$program.new"
    echo "Building $program"
    if ! { "$python" -I -m venv "$program.new" &&
        "$program.new/bin/python" -I -m pip install --quiet --no-cache-dir --disable-pip-version-check \
            --constraint "$checkout/systemd/constraints.txt" "$checkout"; }; then
        stop "the Python packages cannot be installed: is there a network? What was installed before is unchanged"
    fi
    # The scripts hold the path of the folder in which they were made.
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
    new_units=
    for name in $names; do
        [ -e "$units/$name.service" ] || new_units="$new_units $name"
        install -m 0644 "$checkout/systemd/$name.service" "$units/"
    done
    systemctl daemon-reload
    # An upgrade does not enable a unit that its owner has disabled.
    # shellcheck disable=SC2086 # none, one or two names
    [ -z "$new_units" ] || systemctl enable --quiet $new_units
}

say_stopped() { # which daemons should run but do not, and how to start them
    stopped=
    for name in $names; do
        if systemctl is-enabled --quiet "$name" && ! systemctl is-active --quiet "$name"; then stopped="$stopped $name"; fi
    done
    [ -z "$stopped" ] || echo "Not running:$stopped. To start: sudo systemctl restart$stopped"
}

known_names() { # the settings that a file names, in comments too
    sed -n 's/^#\{0,1\} *\([A-Z][A-Z0-9_]*\)=.*/\1/p' "$1"
}

install_or_upgrade() {
    [ -f "$checkout/.env.example" ] || stop "$checkout is not a complete checkout: .env.example is missing"
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
    [ -z "$new" ] || echo "New settings, described in $checkout/.env.example, that $settings does not have:$new"
    # shellcheck disable=SC2086 # two names
    systemctl try-restart $names || { say_stopped >&2 && stop "upgraded, but not all daemons start: see systemctl status $names"; }
    if [ -n "$new_units" ]; then
        echo "Installed, with the settings in $settings"
    else
        echo "Upgraded; running daemons were restarted"
    fi
    say_stopped
    echo "To check: sudo envoy2emon check"
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

umask 022 # the daemons' user has to read what root puts here
case ${1-} in
    '')
        check_machine
        install_or_upgrade
        ;;
    --uninstall)
        check_machine
        uninstall
        echo "Removed; the daemons no longer run. Kept: the settings in $settings, the logs, and in /var/lib/envoy2emon the backlog and the token."
        echo "To install again: sudo $0; to remove these too: sudo $0 --purge"
        ;;
    --purge)
        check_machine
        uninstall
        purge
        echo "Removed, with the settings, the backlog, the token and the logs"
        ;;
    --help | -h)
        sed -n '2,5s/^# \{0,1\}//p' "$0"
        ;;
    *)
        sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
esac
