package bootstrap

import "strconv"

// Flags are the command line that containerd calls a shim with.
type Flags struct {
	Debug, Version, Info, Help       bool
	ID, Namespace, Bundle, Socket    string
	DebugSocket, Address, PublishBin string
	LogLevel                         string // ours: what the option of this name says
	Verb                             string
}

func (f *Flags) text(name string) *string {
	switch name {
	case "id":
		return &f.ID
	case "namespace":
		return &f.Namespace
	case "bundle":
		return &f.Bundle
	case "socket":
		return &f.Socket
	case "debug-socket":
		return &f.DebugSocket
	case "address":
		return &f.Address
	case "log-level":
		return &f.LogLevel
	case "publish-binary":
		return &f.PublishBin
	}
	return nil
}

func (f *Flags) toggle(name string) *bool {
	switch name {
	case "debug":
		return &f.Debug
	case "v", "version":
		return &f.Version
	case "info":
		return &f.Info
	case "h", "help":
		return &f.Help
	}
	return nil
}

// ParseFlags reads a command line by package flag's rules; the first argument that
// is not a flag is the verb, and what follows it is ignored as containerd's shims do.
func ParseFlags(args []string) (*Flags, error) {
	f := new(Flags)
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if len(arg) < 2 || arg[0] != '-' {
			f.Verb = arg
			return f, nil
		}
		if arg == "--" {
			if i+1 < len(args) {
				f.Verb = args[i+1]
			}
			return f, nil
		}
		name := arg[1:]
		if name[0] == '-' {
			name = name[1:]
		}
		value, given := "", false
		for j := 1; j < len(name); j++ {
			if name[j] == '=' {
				name, value, given = name[:j], name[j+1:], true
				break
			}
		}
		if b := f.toggle(name); b != nil {
			*b = true
			if given {
				v, err := strconv.ParseBool(value)
				if err != nil {
					return nil, failure("invalid value " + strconv.Quote(value) + " for flag -" + name)
				}
				*b = v
			}
			continue
		}
		s := f.text(name)
		if s == nil {
			return nil, failure("flag provided but not defined: -" + name)
		}
		if !given {
			if i++; i == len(args) {
				return nil, failure("flag needs an argument: -" + name)
			}
			value = args[i]
		}
		*s = value
	}
	return f, nil
}
