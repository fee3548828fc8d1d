#!/bin/sh
# build-module.sh OUT DEPFILE FOLDER COMPILER [FLAG...] -- SOURCE... - a module of src/ as one object, compiled for the fuzzers.
set -eu
out=$1 depfile=$2 folder=$3
shift 3
flags=
while [ "$1" != -- ]; do flags="$flags $1"; shift; done
shift
mkdir -p "$folder"
objects=
for source in "$@"; do
	object=$folder/$(basename "$source" .c).o
	$flags -MMD -MF "$object.d" -MT "$out" -c "$source" -o "$object"
	objects="$objects $object"
done
ld -r -o "$out" $objects
cat "$folder"/*.o.d >"$depfile"
