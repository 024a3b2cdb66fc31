#!/bin/bash
# boot-systemd.sh [-r ROOT] COMMAND [ARGUMENT...]
# Boots a throw-away machine and runs COMMAND in it as root: systemd as PID 1 of namespaces of its own, its files an overlay
# over ROOT (default /, so this computer as it is) whose changes live in memory and end with it. Its network is a loopback.
# stderr gets "machine PID": the host's number of the machine's PID 1, for `nsenter --all --target PID`.
# $SHARE, a folder, is seen at /mnt, read-only. Exits as COMMAND does; 77 says that nothing can boot here, and stderr why.
# Needs root, bash, util-linux, procps, and a kernel with overlayfs and cgroup2.
set -eu

# What namespaces do not hold back must be out of the machine's reach: clock, kernel modules, kernel log, ports.
readonly FENCE=--bounding-set=-sys_time,-wake_alarm,-sys_module,-sys_rawio,-syslog,-mac_admin,-mac_override
readonly CLEAN=(env -i container=other LANG=C.UTF-8 HOME=/root TERM=dumb
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin setpriv "$FENCE" --)
# They drive hardware or a network that is not there, set kernel values of the host, or wait for what never comes.
readonly MASKED=(systemd-{logind,modules-load,networkd,remount-fs,resolved,sysctl,timesyncd,udevd}.service
  {dev-hugepages,sys-fs-fuse-connections,sys-kernel-{config,debug,tracing}}.mount)

impossible() {
  echo "boot-systemd.sh: cannot boot here: $*" >&2
  exit 77
}

# --- inside: PID 1 of the new namespaces makes the machine's file system and becomes systemd --------------------------------

lay_files() {                                                             # ROOT, SCRATCH: the working folder becomes its /
  mount --make-rprivate /
  mount -t tmpfs -o mode=0755 machine "$2"
  mkdir "$2/changes" "$2/work" "$2/root"
  mount -t overlay -o "lowerdir=$1,upperdir=$2/changes,workdir=$2/work" machine "$2/root"
  cd "$2/root"
  if [ "$1" = / ]; then
    rm -rf etc/systemd/system/*.{wants,requires}                          # the host's own daemons stay out
  fi
  [ -e etc/hosts ] || printf '127.0.0.1 localhost\n::1 localhost\n' >etc/hosts
  rm -f etc/machine-id                                                    # empty: systemd draws one
  touch etc/machine-id
  echo "${2##*/}" | tr . - >etc/hostname
  hostname -F etc/hostname
  for unit in "${MASKED[@]}"; do ln -sfn /dev/null "etc/systemd/system/$unit"; done
}

lay_kernel_files() {
  mount -t proc -o nosuid,nodev,noexec proc proc
  mount --bind proc/sys proc/sys
  mount -o remount,bind,ro proc/sys                                       # most of it is the host's
  mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys                      # read-only: systemd leaves devices alone
  mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 sys/fs/cgroup           # from the machine's group downwards
  mount -t tmpfs -o mode=0755,nosuid machine dev
  for device in null zero full random urandom tty; do
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
  done
  mkdir dev/pts dev/shm
  mount -t devpts -o newinstance,mode=0620,ptmxmode=0666,gid=5 devpts dev/pts
  ln -s pts/ptmx dev/ptmx
  ln -s /proc/self/fd dev/fd
  for stream in stdin:0 stdout:1 stderr:2; do ln -s "fd/${stream#*:}" "dev/${stream%:*}"; done
  mount -t tmpfs -o mode=1777 machine dev/shm
  mount -t tmpfs -o mode=1777 machine tmp
  mount -t tmpfs -o mode=0755 machine run
}

become_systemd() {                                                        # ROOT, SCRATCH
  lay_files "$1" "$2"
  lay_kernel_files
  if [ -n "${SHARE-}" ]; then
    mkdir -p mnt
    mount --bind "$SHARE" mnt
    mount -o remount,bind,ro mnt
  fi
  mkdir .host
  pivot_root . .host
  cd /
  umount --lazy /.host
  rmdir /.host
  mount --make-rshared /                                                  # as systemd expects to find it
  exec "${CLEAN[@]}" /lib/systemd/systemd --system --unit=multi-user.target
}

# --- outside ----------------------------------------------------------------------------------------------------------------

try_for_10_s() {                                                          # COMMAND...
  for _ in {1..200}; do
    "$@" && return
    sleep 0.05
  done
  return 1
}

has_systemd() {                                                           # its private socket comes when it takes orders
  kill -0 "$keeper" || return 0                                           # it died; the question after its state tells
  init=$(pgrep -P "$keeper") && [ -S "/proc/$init/root/run/systemd/private" ]
}

is_gone() { [ ! -d "/proc/${init:-none}" ]; }
group_is_gone() { find "$group" -depth -type d -exec rmdir {} + || [ ! -d "$group" ]; }

tear_down() {
  trap '' INT TERM HUP
  set +e
  [ -z "$command" ] || { pkill -KILL -P "$command"; kill -KILL "$command"; }
  [ -z "$init" ] || kill -s RTMIN+4 "$init"                               # systemd(1): power off; then by force
  try_for_10_s is_gone
  [ -z "$keeper" ] || kill -KILL "$keeper"
  wait
  try_for_10_s group_is_gone
  rmdir "$scratch"
  rm -f "$scratch.log"
}

main() {
  root=/ keeper='' init='' command=''                                     # global: the trap needs them
  if [ "${1-}" = -r ]; then
    root=$(realpath "$2")
    shift 2
  fi
  [ "$(id -u)" = 0 ] || impossible "that takes root"
  [ -x "$root/lib/systemd/systemd" ] || impossible "there is no systemd in $root"
  unshare -muinCpf true 2>/dev/null || impossible "no namespaces (a container without CAP_SYS_ADMIN?)"
  group=$(findmnt --noheadings --first-only --types cgroup2 --output TARGET) || impossible "cgroup2 is not mounted"
  scratch=$(mktemp -d -t machine.XXXXXX)
  group=$group/${scratch##*/}
  mkdir "$group" || impossible "no control group can be made at $group"
  trap 'tear_down 2>/dev/null' EXIT
  trap 'exit 130' INT TERM HUP

  # Its control group first, so that all of the machine is in it; killed with this script, however that ends.
  (
    echo "$BASHPID" >"$group/cgroup.procs"
    exec setpriv --pdeathsig KILL -- unshare -muinCpf --kill-child "$0" --inside "$root" "$scratch"
  ) >"$scratch.log" 2>&1 </dev/null &
  keeper=$!
  try_for_10_s has_systemd 2>/dev/null || true
  state=$(timeout 60 nsenter --all --target "${init:-0}" systemctl is-system-running --wait 2>&1) || true
  case $state in
    running | degraded) ;;
    *) impossible "systemd is in the state '$state'; $(tail -n 20 "$scratch.log")" ;;
  esac
  echo "machine $init" >&2
  nsenter --all --target "$init" "${CLEAN[@]}" "$@" <&0 &
  command=$!
  wait "$command"
}

if [ "${1-}" = --inside ]; then become_systemd "$2" "$3"; else main "$@"; fi
