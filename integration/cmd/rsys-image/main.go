// Command rsys-image writes the test image, an OCI layout in a tar file made of
// this machine's busybox, to standard output.
package main

import (
	"fmt"
	"os"

	"github.com/rsys-io/rsys/integration/harness"
)

func main() {
	if err := harness.WriteImage(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "rsys-image:", err)
		os.Exit(1)
	}
}
