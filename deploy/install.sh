#!/bin/sh
# install.sh [--root DIR] [--bindir DIR] [--config FILE] [--shim FILE] [--no-binary] [--restart]
# install.sh --uninstall [the same]
#
# Puts the shim and its runtime stanza on a node, or takes them away. It may be
# run again: what is there is replaced, and nothing else is touched.
#
#   --root DIR    the node's root directory (/): /host in an installer's pod
#   --bindir DIR  where the shim goes (/usr/local/bin), below the root
#   --config FILE containerd's configuration (/etc/containerd/config.toml)
#   --shim FILE   the shim; the one beside this script, or in ../bin
#   --no-binary   the shim is there already, by a package
#   --restart     restart containerd, if its configuration has changed
#
# POSIX sh and what busybox has.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=/ bindir=/usr/local/bin config=/etc/containerd/config.toml shim='' binary=1 restart='' uninstall=''
name=containerd-shim-rsys-v1
begin='# BEGIN rsys: what deploy/install.sh added; removed by its --uninstall'
end='# END rsys'
dropin=/etc/systemd/system/containerd.service.d/50-rsys.conf

say() { printf '%s\n' "install.sh: $*"; }
die() { say "$*" >&2; exit 1; }

while [ $# -gt 0 ]; do
	case $1 in
	--root | --bindir | --config | --shim)
		[ $# -gt 1 ] || die "$1 needs a value"
		case $1 in
		--root) root=$2 ;;
		--bindir) bindir=$2 ;;
		--config) config=$2 ;;
		--shim) shim=$2 ;;
		esac
		shift
		;;
	--no-binary) binary='' ;;
	--restart) restart=1 ;;
	--uninstall) uninstall=1 ;;
	-h | --help)
		sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$0"
		exit
		;;
	*) die "don't know $1; -h tells" ;;
	esac
	shift
done
root=${root%/}
[ -d "$root/" ] || die "no directory $root"
changed=

# replace FILE MODE: standard input becomes the file, whole or not at all.
replace() {
	mkdir -p "$(dirname "$1")"
	cat >"$1.rsys-new"
	chmod "$2" "$1.rsys-new"
	mv -f "$1.rsys-new" "$1"
}

# without FILE: the file without what an earlier run added.
without() {
	awk -v b="$begin" -v e="$end" '$0 == b { skip = 1 } !skip { print } $0 == e { skip = 0 }' "$1"
}

# stanza VERSION: the runtime's table. It has no options: systemd's cgroup driver needs none.
stanza() {
	# containerd 1.7 has no runc any more as soon as a file names a runtime.
	if [ "$1" = 2 ] && ! without "$file" | grep -q 'containerd\.runtimes\.runc\]'; then
		cat "$here/containerd/config-v2-runc.toml"
	fi
	cat "$here/containerd/config-v$1.toml"
}

configure() {
	file=$root$config
	if [ ! -e "$file" ]; then
		[ -z "$uninstall" ] || return 0
		printf 'version = 2\n' | replace "$file" 644
	fi
	before=$(cat "$file")
	if [ -z "$uninstall" ]; then
		version=$(without "$file" | sed -n 's/^[[:space:]]*version[[:space:]]*=[[:space:]]*\([0-9]\{1,\}\).*/\1/p' | head -n 1)
		case $version in
		2) ;;
		3 | 4) version=3 ;;
		*) die "$config: its version is '$version', not 2, 3 or 4; see deploy/containerd for what to add by hand" ;;
		esac
		if without "$file" | grep -q 'containerd\.runtimes\.rsys\]'; then
			say "$config has a runtime rsys already, which is left as it is"
			return 0
		fi
		# Made whole before the file is touched, which it is read from.
		new=$(
			without "$file"
			printf '%s\n' "$begin"
			stanza "$version"
			printf '%s\n' "$end"
		)
		printf '%s\n' "$new" | replace "$file" 644
	elif [ "$(without "$file")" = 'version = 2' ] && grep -qxF "$begin" "$file"; then
		rm -f "$file" # it was made here
		changed=1
		return 0
	else
		new=$(without "$file")
		printf '%s\n' "$new" | replace "$file" 644
	fi
	[ "$before" = "$(cat "$file")" ] || changed=1
}

# systemctl is the node's, for the node: this may be a container.
node_systemctl() {
	if [ -z "$root" ]; then
		systemctl "$@"
	else
		# The host's init, seen by hostPID, has the host's namespaces.
		nsenter -t 1 -m -- systemctl "$@" 2>/dev/null || chroot "$root/" systemctl "$@"
	fi
}

case :/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin: in
*:$bindir:*) in_path=1 ;;
*) in_path= ;;
esac

if [ -n "$uninstall" ]; then
	configure
	if [ -e "$root$dropin" ]; then
		rm -f "$root$dropin"
		rmdir "$root$(dirname "$dropin")" 2>/dev/null || :
		changed=1
	fi
	if [ -n "$binary" ]; then
		rm -f "$root$bindir/$name"
		[ -n "$in_path" ] || rmdir -p "$root$bindir" 2>/dev/null || :
	fi
	say "removed"
else
	if [ -n "$binary" ]; then
		for f in "$shim" "$here/$name" "$here/../bin/$name"; do
			[ -n "$f" ] && [ -f "$f" ] && break
			f=
		done
		[ -n "$f" ] || die "there is no $name beside this script; hack/build builds it"
		# Moved there, not written over: shims that run keep the old one.
		replace "$root$bindir/$name" 755 <"$f"
	fi
	if [ -z "$in_path" ] && [ -n "$binary" ]; then
		drop=$(sed "s|@BINDIR@|$bindir|" "$here/systemd/containerd-rsys.conf")
		if [ "$drop" != "$(cat "$root$dropin" 2>/dev/null)" ]; then
			printf '%s\n' "$drop" | replace "$root$dropin" 644
			changed=1
		fi
	fi
	configure
	say "installed"
fi
if [ -z "$changed" ]; then
	say "containerd's configuration is as it was"
elif [ -n "$restart" ]; then
	node_systemctl daemon-reload
	node_systemctl restart containerd.service
	say "containerd was restarted"
else
	say "restart containerd: systemctl daemon-reload && systemctl restart containerd"
fi
