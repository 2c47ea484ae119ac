// Command containerd-shim-rsys-v1 is the shim of containerd's runtime io.containerd.rsys.v1.
package main

import (
	"github.com/rsys-io/rsys/shim"
	_ "github.com/rsys-io/rsys/shim/bootstrap/first"
)

// version is set by the linker.
var version = "devel"

func main() { shim.Main(version) }
