package shim

import (
	"io"
	"os"
	"path/filepath"
	"strings"
)

const usageText = `PROGRAM is the shim of containerd's runtime ` + RuntimeName + `.

containerd calls it; name it as a runtime: ctr run --runtime ` + RuntimeName + ` ...

For people:
  PROGRAM plan BUNDLE [--json]   print the system calls that would make a container of a bundle here
  PROGRAM trace [BUNDLE|ID] [--chrome|--json]
                                 print what the set-up of a container has done and how long each call took, of the last one
                                 if none is named; for those set up at the log level debug
  PROGRAM -v                     print the version
  PROGRAM -h                     print this

For containerd:
  PROGRAM [flags] start          find or start the shim of a container, in whose bundle it is called
  PROGRAM [flags] delete         remove what a container left whose shim is dead
  PROGRAM -info                  read the runtime's options, print its features, as protobuf

  -namespace NAME                containerd's namespace
  -id ID                         the container
  -address PATH                  containerd's socket
  -bundle DIR                    the container's bundle, if it is not the working directory
  -debug                         log everything
  -log-level LEVEL               error, warn, info or debug; goes before -debug
  -socket PATH                   listen there, called by hand
  -debug-socket PATH             answer pprof there
  -publish-binary                is ignored

Documentation: https://github.com/rsys-io/rsys
`

func usage(out io.Writer) {
	io.WriteString(out, strings.ReplaceAll(usageText, "PROGRAM", filepath.Base(os.Args[0])))
}
