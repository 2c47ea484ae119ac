package shim

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/rsys-io/rsys/namespaces"
	"github.com/rsys-io/rsys/shim/bootstrap"
)

// options are what a create request or -info came with: runc's, so that a node's configuration moves over as it is, and a few of
// our own, which only TOML has a place for.
type options struct {
	*runcoptions.Options
	// CriuPath was runc's until containerd 2.0; field 8 of its options.
	CriuPath string
	// Isolation is that of all containers, as their annotation has it.
	Isolation string
	// RootfsOnHost has each container's root file system mounted at its bundle's rootfs on the host as well.
	RootfsOnHost bool
	// LogLevel is the shim's. It is the start verb that heeds it.
	LogLevel string
}

// parseOptions reads them. CRI knows runc's type for runc's own shim only and sends any other the same settings as
// TOML, in the generic options.
func parseOptions(a *anypb.Any) (*options, error) {
	opts := &options{Options: new(runcoptions.Options)}
	if a == nil || len(a.Value) == 0 {
		return opts, nil
	}
	switch name := typeName(a); name {
	case "containerd.runc.v1.Options":
		// containerd itself heeds the task API's address and version, before there is a request.
		if err := proto.Unmarshal(a.Value, opts.Options); err != nil {
			return nil, invalid("options: %s: %v", name, err)
		}
		opts.CriuPath = unknownString(opts.ProtoReflect().GetUnknown(), criuPathField)
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
		if err := bootstrap.EachSetting(string(body), opts.set); err != nil {
			return nil, invalid("options: %v", err)
		}
	default:
		return nil, invalid("options: unknown type %q", a.TypeUrl)
	}
	return opts, opts.check()
}

func typeName(a *anypb.Any) string { return a.TypeUrl[strings.LastIndexByte(a.TypeUrl, '/')+1:] }

const criuPathField = 8

// unknownString is a string among the fields of a message that its type does not know (any more).
func unknownString(fields []byte, want protowire.Number) (value string) {
	for len(fields) > 0 {
		number, kind, n := protowire.ConsumeTag(fields)
		if n < 0 {
			return value
		}
		fields = fields[n:]
		if number == want && kind == protowire.BytesType {
			s, n := protowire.ConsumeString(fields)
			if n < 0 {
				return value
			}
			value = s
		}
		if n = protowire.ConsumeFieldValue(number, kind, fields); n < 0 {
			return value
		}
		fields = fields[n:]
	}
	return value
}

// set takes a key of the TOML. Those of other runtimes are left alone.
func (o *options) set(key, value string) (err error) {
	switch key {
	case "systemdcgroup":
		o.SystemdCgroup, err = bootstrap.ParseBool(value)
	case "nopivotroot":
		o.NoPivotRoot, err = bootstrap.ParseBool(value)
	case "nonewkeyring":
		o.NoNewKeyring, err = bootstrap.ParseBool(value)
	case "iouid":
		o.IoUid, err = bootstrap.ParseID(value)
	case "iogid":
		o.IoGid, err = bootstrap.ParseID(value)
	case "binaryname":
		o.BinaryName, err = bootstrap.ParseText(value)
	case "shimcgroup":
		o.ShimCgroup, err = bootstrap.ParseText(value)
	case "criupath":
		o.CriuPath, err = bootstrap.ParseText(value)
	case "criuimagepath":
		o.CriuImagePath, err = bootstrap.ParseText(value)
	case "criuworkpath":
		o.CriuWorkPath, err = bootstrap.ParseText(value)
	case "root":
		o.Root, err = bootstrap.ParseText(value)
	case "taskapiaddress":
		var address string
		if address, err = bootstrap.ParseText(value); address != "" {
			err = errTaskAPI
		}
	case "taskapiversion":
		var version uint32
		if version, err = bootstrap.ParseID(value); version != 0 {
			err = errTaskAPI
		}
	case "isolation":
		o.Isolation, err = bootstrap.ParseText(value)
	case "rootfsonhost":
		o.RootfsOnHost, err = bootstrap.ParseBool(value)
	case "loglevel":
		o.LogLevel, err = bootstrap.ParseText(value)
	}
	return err
}

var errTaskAPI = errors.New("containerd takes it from runc's options type only, not from TOML")

// check refuses what can't be done as it is asked for.
func (o *options) check() error {
	// What the type means by nothing is runc without a path, which Docker says with every container.
	if b := o.BinaryName; b != "" && b != "runc" {
		// Whoever set it would run another runtime than they think.
		return invalid("options: BinaryName %q: this runtime has no binary behind it", b)
	}
	if _, err := namespaces.ParseIsolation(o.Isolation); err != nil {
		return invalid("options: Isolation: %v", err)
	}
	if o.LogLevel != "" {
		if _, err := logrus.ParseLevel(o.LogLevel); err != nil {
			return invalid("options: LogLevel: %v", err)
		}
	}
	return nil
}

// tellOfRoot says once that the option Root has no effect: it is where runc keeps its state, of which there is none here.
func (o *options) tellOfRoot() {
	if o.Root != "" {
		rootTold.Do(func() { log.L.Infof("options: Root %s: this runtime keeps no state, and puts nothing there", o.Root) })
	}
}

var rootTold sync.Once

// optionsFile keeps, in the bundle, what the delete verb must know of a dead shim's container. It has runc's
// shim's name and form.
const optionsFile = "options.json"

type savedOptions struct {
	SystemdCgroup bool `json:"systemd_cgroup,omitempty"`
}

// saveOptions writes the file only if it would say something.
func saveOptions(bundle string, opts *options) error {
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
