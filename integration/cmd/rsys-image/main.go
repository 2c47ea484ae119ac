// Command rsys-image writes the test image, an OCI layout in a tar file made of
// this machine's busybox, to standard output; with the argument pause that of a
// pod's first container.
package main

import (
	"fmt"
	"os"

	"github.com/rsys-io/rsys/integration/harness"
)

func main() {
	write := harness.WriteImage
	if len(os.Args) > 1 && os.Args[1] == "pause" {
		write = harness.WritePauseImage
	}
	if err := write(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "rsys-image:", err)
		os.Exit(1)
	}
}
