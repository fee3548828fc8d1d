# shellcheck shell=sh
# vcft-cmdline.sh - a guest's role comes from the kernel command line. Sourced by the first process of every lab guest.
#
#   vcft.name=NAME                  host name
#   vcft.ip0=ADDRESS/LEN[@MAC]      address of eth0, or of the interface with this MAC; vcft.ip1=… for eth1, and so on
#   vcft.arp=ADDRESS@MAC            a neighbour that is known from the start, for ever; may be repeated
#   vcft.run=COMMAND                shell command to start at boot, in the background, output to the console; '+' is a space,
#                                   %XX a byte in hexadecimal; may be repeated
#
# Needs /proc and /sys, and sh with either busybox or iproute2. Addresses come from the command line and from nowhere else.

vcft_cmdline=$(cat /proc/cmdline)

# Prints each value of vcft.KEY, one a line.
vcft_values() {
  for vcft_word in $vcft_cmdline; do
    case $vcft_word in "vcft.$1="*) echo "${vcft_word#*=}" ;; esac
  done
}

# form-urlencoded to text
vcft_decode() {
  printf '%b' "$(echo "$1" | sed 's/\\/\\\\/g; s/+/ /g; s/%\([0-9A-Fa-f][0-9A-Fa-f]\)/\\x\1/g')"
}

vcft_interface_of_mac() {
  for vcft_dir in /sys/class/net/*; do
    read -r vcft_mac < "$vcft_dir/address"
    if [ "$vcft_mac" = "$1" ]; then echo "${vcft_dir##*/}"; return 0; fi
  done
  echo "VCFT-GUEST-ERROR no interface has the address $1" > /dev/console
  return 1
}

# vcft_address N ADDRESS/LEN[@MAC]
vcft_address() {
  case $2 in
  *@*) vcft_if=$(vcft_interface_of_mac "${2#*@}") || return 1 ;;
  *) vcft_if=eth$1 ;;
  esac
  ip address add "${2%@*}" dev "$vcft_if" && ip link set "$vcft_if" up
}

vcft_neighbour() {
  vcft_if=$(ip route get "${1%@*}" | sed -n 's/.* dev \([^ ]*\).*/\1/p')
  arp -s "${1%@*}" "${1#*@}" -i "$vcft_if" 2> /dev/null ||
    ip neigh replace "${1%@*}" lladdr "${1#*@}" nud permanent dev "$vcft_if"
}

vcft_network() {
  ip link set lo up
  for vcft_n in 0 1 2 3; do
    for vcft_value in $(vcft_values "ip$vcft_n"); do vcft_address "$vcft_n" "$vcft_value"; done
  done
  for vcft_value in $(vcft_values arp); do vcft_neighbour "$vcft_value"; done
}

vcft_run() {
  for vcft_value in $(vcft_values run); do
    sh -c "$(vcft_decode "$vcft_value")" < /dev/null > /dev/console 2>&1 &
  done
}
