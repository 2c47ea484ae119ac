package shim

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/log"
)

// forgottenTime is how often a shim without containers looks for its bundle.
const forgottenTime = 10 * time.Second

// goIfForgotten ends a shim that containerd knows nothing of, with the sandbox that it may have. There are two ways to it: containerd is killed after it has
// started the shim and before it has noted so; and its client goes away during CreateSandbox or StartSandbox, upon which it
// asks the shim for a shutdown in a context that has ended. In both cases it then removes the bundle. It looks until there is a container.
func goIfForgotten(svc *service, bundle string, every time.Duration) {
	for {
		time.Sleep(every)
		if svc.wasUsed() {
			return
		}
		if _, err := os.Lstat(bundle); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		log.L.Warn("the bundle was removed without a word to this shim: it goes")
		if err := svc.sandboxes.shutdownWhatIs(context.Background()); err != nil {
			log.L.WithError(err).Warn("shut down what is here")
			continue
		}
		removeRenamed(bundle)
		return
	}
}

// removeRenamed removes what containerd could not: it renames a bundle, with a dot before its name, and then removes it, which a mount in
// it prevents.
func removeRenamed(bundle string) {
	dir, name := filepath.Split(bundle)
	if now, err := os.Getwd(); err == nil && now == filepath.Join(dir, "."+strings.TrimPrefix(name, ".")) {
		if err := os.RemoveAll(now); err != nil {
			log.L.WithError(err).Warn("remove the bundle")
		}
	}
}
