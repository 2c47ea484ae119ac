# Shared by the scripts in hack/. Sourced, never run.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BIN=$ROOT/bin
RSYS_CACHE=${RSYS_CACHE:-${HOME:-/root}/.cache/rsys}

# The peers we test under and compare with. A change of version is a new
# directory in the cache, so that going back costs nothing.
CONTAINERD_24=2.4.2
CONTAINERD_17=1.7.35
RUNC=1.5.2
NERDCTL=2.2.1
DOCKER=28.5.2
STATICCHECK=0.8.2
CRIU=4.1.1
CHECKPOINTCTL=1.6.0
CRICTL=1.37.0
KUBERNETES=1.34.4

# Exactly the toolchain that is installed, and no stamp of the git state: the
# scripts must give the same result in a checkout, a copy and a tarball.
export GOTOOLCHAIN=${GOTOOLCHAIN:-local}
export GOFLAGS=${GOFLAGS:--buildvcs=false}

say() { printf '%s\n' "$*" >&2; }
die() { say "${0##*/}: $*"; exit 1; }

need_root() { [ "$(id -u)" = 0 ] || die "must run as root: containerd and containers need it"; }

# have_pkg PACKAGE: is this Debian package installed?
have_pkg() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'install ok installed'; }

# install_packages PACKAGE...: those that are missing, without a question.
install_packages() {
	local p missing=()
	for p in "$@"; do have_pkg "$p" || missing+=("$p"); done
	[ ${#missing[@]} -gt 0 ] || return 0
	command -v apt-get >/dev/null || die "please install by hand: ${missing[*]}"
	need_root
	say "installing ${missing[*]}"
	local log
	log=$(mktemp)
	if ! { DEBIAN_FRONTEND=noninteractive apt-get update -qq &&
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } \
		>"$log" 2>&1 </dev/null; then
		cat "$log" >&2
		rm -f "$log"
		die "apt-get could not install ${missing[*]}"
	fi
	rm -f "$log"
}

# build_module DIR MODULE VERSION GO-BUILD-ARGUMENT...
#
# Builds commands of a module at a version into $RSYS_CACHE/DIR/bin, unless
# that was done before. It builds in a copy of the module's source as the main
# module: `go install pkg@version` refuses a go.mod with replace or exclude
# (containerd 1.7 has one), and this way we get exactly the dependencies that
# its maintainers release with. A function prepare, if there is one, is run there first. GO_COMMAND is what go is
# told instead of "build".
build_module() {
	local dir=$RSYS_CACHE/$1 mod=$2 version=$3 src tmp start=$SECONDS
	shift 3
	[ -e "$dir/built" ] && return 0
	mkdir -p "$RSYS_CACHE"
	(
		# Two scripts started at once shall not build the same thing twice.
		exec 9>"$dir.lock"
		flock 9
		[ -e "$dir/built" ] && exit 0
		say "building $mod $version into $dir (once)"
		src=$(cd "$RSYS_CACHE" && GOFLAGS=-mod=mod go mod download -json "$mod@v$version" | sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p')
		[ -d "$src" ] || die "the module proxy has no $mod v$version"
		tmp=$(mktemp -d "$RSYS_CACHE/build.XXXXXX")
		trap 'chmod -R u+w "$tmp"; rm -rf "$tmp"' EXIT
		cp -r "$src/." "$tmp"
		chmod -R u+w "$tmp"
		[ "$(type -t prepare)" != function ] || (cd "$tmp" && prepare)
		mkdir -p "$dir/bin"
		(cd "$tmp" && go ${GO_COMMAND:-build} -trimpath -o "$dir/bin/" "$@") || die "building $mod $version failed"
		touch "$dir/built"
		say "built $mod $version in $((SECONDS - start)) s"
	)
}

# What is left out of containerd are snapshotters that need kernel features or
# libraries which no test uses. CRI stays in.
containerd_tags=no_btrfs,no_devmapper,no_zfs,no_aufs,urfave_cli_no_docs

# For another architecture it goes to that one's directory of the cache, and is
# without runc's shim.
get_containerd() { # VERSION [ARCHITECTURE]
	local mod=github.com/containerd/containerd dir=containerd-$1 more=./cmd/containerd-shim-runc-v2
	if [ -n "${2:-}" ]; then
		dir=$2/$dir more=
		mkdir -p "$RSYS_CACHE/$2"
		local -x GOARCH=$2
	fi
	case $1 in 2.*) mod=$mod/v2 ;; esac
	# containerd's own releases build the shim like this, without cgo.
	CGO_ENABLED=0 build_module "$dir" $mod "$1" -tags "$containerd_tags" \
		-ldflags "-s -w -X $mod/version.Version=$1 -X $mod/version.Package=$mod" \
		./cmd/containerd ./cmd/ctr $more
}

get_runc() {
	[ -e "$RSYS_CACHE/runc-$RUNC/built" ] && return 0
	install_packages gcc libc6-dev libseccomp-dev pkg-config
	CGO_ENABLED=1 build_module "runc-$RUNC" github.com/opencontainers/runc "$RUNC" \
		-tags seccomp,urfave_cli_no_docs -ldflags "-s -w -X main.version=$RUNC" .
}

# Docker and what it runs with, as Debian has them: its containerd is older than those above, and its runc not ours. Unpacked
# and never installed, since the packages start daemons and add a group to the machine.
get_docker() {
	local dir=$RSYS_CACHE/docker
	install_packages iptables # has its plug-ins where it was built to look for them; starts nothing
	[ -e "$dir/built" ] && return 0
	mkdir -p "$RSYS_CACHE"
	(
		exec 9>"$dir.lock"
		flock 9
		[ -e "$dir/built" ] && exit 0
		say "getting Debian's docker.io into $dir (once)"
		tmp=$(mktemp -d "$RSYS_CACHE/build.XXXXXX")
		trap 'rm -rf "$tmp"' EXIT
		mkdir "$tmp/deb" "$tmp/x"
		{
			apt-get update -qq &&
				(cd "$tmp/deb" && apt-get -q -o APT::Sandbox::User=root download docker.io containerd runc tini libdevmapper1.02.1 libseccomp2)
		} >"$tmp/log" 2>&1 </dev/null || { cat "$tmp/log" >&2; die "apt-get has no Docker"; }
		rm -rf "$dir"
		mkdir -p "$dir/bin" "$dir/lib"
		for deb in "$tmp"/deb/*.deb; do dpkg -x "$deb" "$tmp/x"; done
		cp "$tmp"/x/usr/bin/{containerd,containerd-shim-runc-v2,docker,docker-init} "$tmp"/x/usr/sbin/{dockerd,docker-proxy,runc} "$dir/bin/"
		find "$tmp/x" -path '*/lib/*' -name 'lib*.so.*' -exec cp -P {} "$dir/lib/" \;
		! LD_LIBRARY_PATH=$dir/lib ldd "$dir/bin/dockerd" "$dir/bin/runc" | grep 'not found' >&2 || die "Docker needs what is not there"
		touch "$dir/built"
	)
}

# A dockerd that, unlike Debian's, takes other shims than runc's. Its go.mod goes by another name. Debian's client does for it.
get_dockerd() {
	prepare() {
		cp vendor.mod go.mod
		cp vendor.sum go.sum
		rm -r vendor # not all of it is in the module
	}
	CGO_ENABLED=0 build_module "dockerd-$DOCKER" github.com/docker/docker "$DOCKER+incompatible" \
		-tags exclude_graphdriver_btrfs,exclude_graphdriver_zfs,no_systemd \
		-ldflags "-s -w -X github.com/docker/docker/dockerversion.Version=$DOCKER" ./cmd/dockerd ./cmd/docker-proxy
	unset -f prepare
}

# What of nerdctl is for its own tests needs a module that was never published.
get_nerdctl() {
	get_cni
	local mod=github.com/containerd/nerdctl
	prepare() {
		rm cmd/nerdctl/helpers/testing*.go
		go mod edit -dropreplace $mod/mod/tigron@v0.0.0 -droprequire $mod/mod/tigron
	}
	CGO_ENABLED=0 build_module "nerdctl-$NERDCTL" $mod/v2 "$NERDCTL" \
		-ldflags "-s -w -X $mod/v2/pkg/version.Version=$NERDCTL" ./cmd/nerdctl
	unset -f prepare
}

get_staticcheck() {
	CGO_ENABLED=0 build_module "staticcheck-$STATICCHECK" honnef.co/go/tools "$STATICCHECK" ./cmd/staticcheck
}

get_checkpointctl() {
	CGO_ENABLED=0 build_module "checkpointctl-$CHECKPOINTCTL" github.com/checkpoint-restore/checkpointctl "$CHECKPOINTCTL" .
}

get_crictl() {
	CGO_ENABLED=0 build_module "crictl-$CRICTL" sigs.k8s.io/cri-tools "$CRICTL" \
		-ldflags "-s -w -X sigs.k8s.io/cri-tools/pkg/version.Version=$CRICTL" ./cmd/crictl
}

# The CRI's own tests. They are to take an image that is there, for they can't pull any here.
get_critest() {
	prepare() {
		sed -i '/^func PullPublicImage(/,/^}/s/^\tid, err := c.PullImage(/\tif st, err := c.ImageStatus(ctx, imageSpec, false); err == nil \&\& st.GetImage() != nil {\n\t\treturn st.GetImage().GetId()\n\t}\n&/' pkg/framework/util.go
		grep -q 'return st.GetImage' pkg/framework/util.go || die "PullPublicImage is not as it was"
	}
	GO_COMMAND='test -c' CGO_ENABLED=0 build_module "critest-$CRICTL" sigs.k8s.io/cri-tools "$CRICTL" ./cmd/critest
	unset -f prepare
}

# Kubernetes' own modules are developed in its tree, of which its module has nothing, and released under versions of their own.
get_kubelet() {
	prepare() {
		local m edits=()
		for m in $(sed -n 's#^\t\(k8s.io/[a-z-]*\) => ./staging/.*#\1#p' go.mod); do
			edits+=(-dropreplace "$m" -require "$m@v0${KUBERNETES#1}")
		done
		rm -rf vendor staging go.work go.work.sum
		go mod edit "${edits[@]}"
		GOFLAGS="$GOFLAGS -mod=mod" go list -deps ./cmd/kubelet >/dev/null
	}
	CGO_ENABLED=0 build_module "kubelet-$KUBERNETES" k8s.io/kubernetes "$KUBERNETES" \
		-ldflags "-s -w -X k8s.io/component-base/version.gitVersion=v$KUBERNETES" ./cmd/kubelet
	unset -f prepare
}

# Debian 12's criu, 3.17.1, can do nothing on Linux 6.18 ("Unexpected rt vDSO area bounds"). The next Debian's is
# unpacked with its libraries, by apt with lists of its own: nothing is installed. What criu calls is: iproute2 and
# iptables for network namespaces; tar is there.
get_criu() {
	local dir=$RSYS_CACHE/criu-$CRIU
	install_packages iproute2 iptables
	[ -e "$dir/built" ] && return 0
	mkdir -p "$RSYS_CACHE"
	(
		exec 9>"$dir.lock"
		flock 9
		[ -e "$dir/built" ] && exit 0
		say "getting Debian's criu $CRIU into $dir (once)"
		tmp=$(mktemp -d "$RSYS_CACHE/build.XXXXXX")
		trap 'rm -rf "$tmp"' EXIT
		mkdir -p "$tmp"/apt/{state/lists/partial,cache/archives/partial} "$tmp"/{deb,root}
		: >"$tmp/apt/status"
		# From where this machine has its Debian.
		mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m1 '/debian/\?$' || echo http://deb.debian.org/debian)
		echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$tmp/apt/sources.list"
		apt=(-q -o "Dir::Etc::SourceList=$tmp/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
			-o "Dir::State=$tmp/apt/state" -o "Dir::State::status=$tmp/apt/status" -o "Dir::Cache=$tmp/apt/cache"
			-o APT::Sandbox::User=root -o Acquire::Languages=none
			-o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
			-o Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false)
		{
			apt-get "${apt[@]}" update
			packages=$(apt-cache "${apt[@]}" depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
				--no-replaces --no-enhances criu | grep '^[a-z0-9]' | sort -u)
			(cd "$tmp/deb" && apt-get "${apt[@]}" download $packages)
		} >"$tmp/log" 2>&1 || { cat "$tmp/log" >&2; die "apt-get has no criu"; }
		for deb in "$tmp"/deb/*.deb; do dpkg -x "$deb" "$tmp/root"; done
		rm -rf "$tmp/root/usr/share"
		mkdir -p "$dir/bin"
		rm -rf "$dir/root"
		mv "$tmp/root" "$dir/root"
		loader=$(find "$dir/root/usr/lib" -name 'ld-linux-*.so.*' | head -1)
		cat >"$dir/bin/criu" <<-WRAPPER
			#!/bin/sh
			exec $loader --library-path ${loader%/*} $dir/root/usr/sbin/criu "\$@"
		WRAPPER
		chmod +x "$dir/bin/criu"
		# A later one of the same Debian will do.
		"$dir/bin/criu" --version >/dev/null || die "criu does not run"
		touch "$dir/built"
	)
}

# The image of the tests and the demo is made from this one static binary.
get_busybox() { install_packages busybox-static; }

# A pod's network: the plugins, and what those for the firewall and for port forwarding run.
get_cni() { install_packages containernetworking-plugins iptables; }

# version of this tree, for binaries to tell.
tree_version() { git -C "$ROOT" describe --tags --always --dirty 2>/dev/null || echo unknown; }
