# shellcheck shell=bash
# lib.sh - what the guest builders share: where things go, when something must be built again, Debian's cloud kernel.
#
# Rules:
#   G1 A result appears under its name only when it is whole (built aside, then renamed).
#   G2 A result whose inputs (scripts, sources, package lists: hashed) have not changed is not built again, nor is the net asked.
#   G3 Two builders at once do the work once: the second waits for the first.
#   G4 Nothing outside the build folder is changed; no package is installed for a guest into the machine that builds it.
# Sourced by build-tiny and build-demo, which set -eu.

guests=$(cd "$(dirname "$0")" && pwd)
out=${VIRTCFT_GUESTS:-$(dirname "$guests")/build/guests}
kernel_tree=$out/kernel

fail() { echo "${0##*/}: $*" >&2; exit 1; }
progress() { echo "guests: $*" >&2; }

need_programs() {
  local program
  for program; do
    command -v "$program" > /dev/null || fail "the program '$program' is missing (packages: see guests/README.md)"
  done
}

# Hash of the given files and folders: names and contents.
hash_of() { (cd "$guests" && find "$@" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16); }

# is_current NAME HASH FILE...: all files are there and were built from inputs with this hash.
is_current() {
  local name=$1 hash=$2 file
  shift 2
  [ "$(cat "$out/.$name.key" 2> /dev/null)" = "$hash" ] || return 1
  for file; do [ -e "$out/$file" ] || return 1; done
}

mark_current() { echo "$2" > "$out/.$1.key.new" && mv "$out/.$1.key.new" "$out/.$1.key"; }   # by rename: the old file may have other names

# One builder at a time; the lock goes with the process.
take_lock() {
  mkdir -p "$out"
  exec 9> "$out/.lock"
  flock 9
}

apt_quiet() { apt-get -qq -o APT::Sandbox::User=root "$@"; }

# The name of the package that linux-image-cloud-amd64 stands for today.
kernel_package() {
  apt-cache depends linux-image-cloud-amd64 2> /dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1
}

# Debian's cloud kernel, unpacked under $kernel_tree, with modules.dep.
build_kernel() {
  local kernel_hash package new
  kernel_hash=$(hash_of lib.sh)
  if is_current kernel "$kernel_hash" kernel vmlinuz; then return; fi
  need_programs apt-get dpkg-deb depmod
  [ -n "$(kernel_package)" ] || apt_quiet update
  package=$(kernel_package)
  [ -n "$package" ] || fail "apt knows no package linux-image-cloud-amd64"
  progress "getting $package"
  new=$out/kernel.new
  rm -rf "$new"
  mkdir -p "$new"
  (cd "$new" && { apt_quiet download "$package" || { apt_quiet update && apt_quiet download "$package"; }; })
  dpkg-deb -x "$new"/*.deb "$new"
  rm "$new"/*.deb
  depmod -b "$new" "${package#linux-image-}"
  rm -rf "$kernel_tree"
  mv "$new" "$kernel_tree"
  cp "$kernel_tree"/boot/vmlinuz-* "$out/vmlinuz.new"
  mv "$out/vmlinuz.new" "$out/vmlinuz"
  mark_current kernel "$kernel_hash"
}

# install_modules FOLDER MODULE...: copies the modules and those they need to FOLDER/lib/modules, and lists them in load order.
install_modules() {
  local target version module path
  target=$1/lib/modules
  shift
  mkdir -p "$target"
  version=$(basename "$kernel_tree"/lib/modules/*)
  for module; do
    /sbin/modprobe -d "$kernel_tree" -S "$version" --show-depends "$module" || fail "the kernel has no module $module"
  done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' > "$target/paths"
  while read -r path; do
    cp "$path" "$target/"
    basename "$path"
  done < "$target/paths" > "$target/load-order"
  rm "$target/paths"
}

# install_busybox FOLDER: /bin/busybox and a link for each of its names. A guest's own programs come after it.
install_busybox() {
  local applet
  mkdir -p "$1/bin"
  cp /bin/busybox "$1/bin/busybox"
  "$1/bin/busybox" --list | while read -r applet; do
    [ "$applet" = busybox ] || ln -s busybox "$1/bin/$applet"
  done
}

# pack_initramfs FOLDER FILE
pack_initramfs() {
  (cd "$1" && find . -print0 | LC_ALL=C sort -z | cpio --quiet -0 -o -H newc -R 0:0 | gzip -9n) > "$2.new"
  mv "$2.new" "$2"
}
