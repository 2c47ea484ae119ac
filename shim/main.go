// Package shim is the contract with containerd: the verbs of a shim's binary, the task service, events and standard
// streams. What a container is, it leaves to package container.
package shim

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/rsys-io/rsys/shim/bootstrap"
)

// RuntimeName is what containerd's clients ask for.
const RuntimeName = "io.containerd.rsys.v1"

// Main does what the command line asks for, and exits. The start verb has
// usually been done by package bootstrap/first before it comes to this.
func Main(version string) {
	if len(os.Args) > 1 && os.Args[1] == "plan" {
		end(printPlan(os.Args[2:], os.Stdout))
	}
	if len(os.Args) > 1 && os.Args[1] == "trace" {
		end(printTrace(os.Args[2:], os.Stdout))
	}
	flags, err := bootstrap.ParseFlags(os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(os.Args[0]), err)
		fmt.Fprintf(os.Stderr, "%s -h prints the usage\n", filepath.Base(os.Args[0]))
		os.Exit(2)
	}
	switch {
	case flags.Help || flags.Verb == "help":
		usage(os.Stdout)
		end(nil)
	case flags.Version:
		fmt.Printf("%s:\n  Version:    %s\n  Go version: %s\n", filepath.Base(os.Args[0]), version, runtime.Version())
	case flags.Info:
		end(printInfo(version, os.Stdin, os.Stdout))
	case flags.Namespace == "":
		end(fmt.Errorf("shim namespace cannot be empty; -h prints the usage"))
	case flags.Verb == "start":
		bootstrap.Main()
	case flags.Verb == "delete":
		end(deleteVerb(flags, os.Stdout))
	case flags.Verb != "":
		end(fmt.Errorf("unknown verb %q", flags.Verb))
	default:
		end(serve(flags))
	}
}

func end(err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(os.Args[0]), err)
		os.Exit(1)
	}
	os.Exit(0)
}
