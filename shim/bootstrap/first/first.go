// Package first runs the start verb while the packages of the server are still uninitialised.
//
// The Go specification's order of initialisation, as the linker has implemented it since
// Go 1.21, is: of the packages whose imports are all initialised, the one that comes first by import path. This
// package's imports end at package syscall, so it comes before os, fmt, net, protobuf
// and all that stands on them, with which the order begins only when syscall is done.
// main imports it for that effect. Should a version of Go choose another order, the start
// verb would still work, and be as slow as in any other shim; a test watches over the order.
package first

import "github.com/rsys-io/rsys/shim/bootstrap"

func init() { bootstrap.Main() }
