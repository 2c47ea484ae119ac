package shim

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/log"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// parseOptions reads the options that a create request or -info came with: runc's, so that a node's
// configuration moves over as it is. CRI knows their type for runc's own shim only and sends
// any other the same settings as TOML, in the generic options.
//
// Heeded are SystemdCgroup, NoPivotRoot, NoNewKeyring, IoUid, IoGid and, by the start verb, which
// sees runc's type only, ShimCgroup. Without meaning here, and ignored: Root (there is no state directory),
// the criu paths (checkpoints are refused), the task API's address and version. BinaryName is
// refused: whoever set it would run another runtime than they think.
func parseOptions(a *anypb.Any) (*runcoptions.Options, error) {
	opts := new(runcoptions.Options)
	if a == nil || len(a.Value) == 0 {
		return opts, nil
	}
	switch name := a.TypeUrl[strings.LastIndexByte(a.TypeUrl, '/')+1:]; name {
	case "containerd.runc.v1.Options":
		if err := proto.Unmarshal(a.Value, opts); err != nil {
			return nil, invalid("options: %s: %v", name, err)
		}
	case "runtimeoptions.v1.Options":
		generic := new(runtimeoptions.Options)
		if err := proto.Unmarshal(a.Value, generic); err != nil {
			return nil, invalid("options: %s: %v", name, err)
		}
		body := generic.ConfigBody
		if len(body) == 0 && generic.ConfigPath != "" {
			data, err := os.ReadFile(generic.ConfigPath)
			if err != nil {
				return nil, invalid("options: ConfigPath: %v", err)
			}
			body = data
		}
		if err := parseTOML(string(body), opts); err != nil {
			return nil, err
		}
	default:
		return nil, invalid("options: unknown type %q", a.TypeUrl)
	}
	if b := opts.BinaryName; b != "" {
		return nil, invalid("options: BinaryName %q: this runtime has no binary behind it", b)
	}
	return opts, nil
}

// parseTOML reads a flat table of runc's options. Keys are compared as containerd's TOML decoder
// does it, without regard to case; those of other runtimes are left alone.
func parseTOML(body string, opts *runcoptions.Options) error {
	for n, line := range strings.Split(body, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if line[0] == '[' {
			return nil // what is in tables is none of these
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return invalid("options: line %d of the TOML: no value", n+1)
		}
		key = strings.Trim(strings.TrimSpace(key), `"'`)
		value = strings.TrimSpace(value)
		var err error
		switch strings.ToLower(strings.ReplaceAll(key, "_", "")) {
		case "systemdcgroup":
			opts.SystemdCgroup, err = strconv.ParseBool(tomlScalar(value))
		case "nopivotroot":
			opts.NoPivotRoot, err = strconv.ParseBool(tomlScalar(value))
		case "nonewkeyring":
			opts.NoNewKeyring, err = strconv.ParseBool(tomlScalar(value))
		case "iouid":
			err = tomlID(value, &opts.IoUid)
		case "iogid":
			err = tomlID(value, &opts.IoGid)
		case "binaryname":
			opts.BinaryName, err = tomlString(value)
		case "shimcgroup":
			opts.ShimCgroup, err = tomlString(value)
		}
		if err != nil {
			return invalid("options: %s: %v", key, err)
		}
	}
	return nil
}

func tomlScalar(v string) string {
	v, _, _ = strings.Cut(v, "#")
	return strings.TrimSpace(v)
}

func tomlID(v string, to *uint32) error {
	n, err := strconv.ParseUint(strings.ReplaceAll(tomlScalar(v), "_", ""), 0, 32)
	*to = uint32(n)
	return err
}

func tomlString(v string) (string, error) {
	if len(v) > 1 && v[0] == '\'' {
		s, _, ok := strings.Cut(v[1:], "'")
		if !ok {
			return "", strconv.ErrSyntax
		}
		return s, nil
	}
	quoted, err := strconv.QuotedPrefix(v)
	if err != nil || quoted[0] != '"' {
		return "", strconv.ErrSyntax
	}
	return strconv.Unquote(quoted)
}

// optionsFile keeps, in the bundle, what the delete verb must know of a dead shim's container. It has runc's
// shim's name and form.
const optionsFile = "options.json"

type savedOptions struct {
	SystemdCgroup bool `json:"systemd_cgroup,omitempty"`
}

// saveOptions writes the file only if it would say something.
func saveOptions(bundle string, opts *runcoptions.Options) error {
	if !opts.SystemdCgroup {
		return nil
	}
	data, err := json.Marshal(savedOptions{SystemdCgroup: true})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(bundle, optionsFile), data, 0o600)
}

func loadOptions(bundle string) (saved savedOptions) {
	data, err := os.ReadFile(filepath.Join(bundle, optionsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return saved
	}
	if err == nil {
		err = json.Unmarshal(data, &saved)
	}
	if err != nil {
		log.L.WithError(err).Warn("read the container's options")
	}
	return saved
}
