package bootstrap

import "strconv"

// A request is what containerd asks of the start verb, in whichever of its protocols.
type request struct {
	// answer makes what is written to standard output.
	answer     func(address string) []byte
	debug      bool
	ttrpc      string
	socketDir  string
	shimCgroup string
	logLevel   string // of our own option; "" leaves it to containerd's
}

// parseRequest tells the protocols apart:
//
//   - 2.3 and later write a BootstrapParams to standard input and read a BootstrapResult.
//   - 1.7 to 2.2 write the runtime's options (an Any), or nothing, say in the environment
//     which version they know, and read JSON. All of them say 2, though
//     2.0 to 2.2 also know 3; nothing else tells them from 1.7, which refuses a 3, and
//     version 3 of the task service differs from 2 by nothing but its name.
//   - 1.6 says no version and takes the whole answer for the address.
//
// Options would parse as BootstrapParams with a type's name for an ID, so the ID and the
// namespace must be those of the command line.
func parseRequest(flags *Flags, env []string, input []byte) (*request, error) {
	req := &request{debug: flags.Debug, ttrpc: lookup(env, "TTRPC_ADDRESS")}
	var params bootstrapParams
	if len(input) > 0 && params.parse(input) == nil && params.id == flags.ID && params.namespace == flags.Namespace {
		req.debug = req.debug || params.logLevel <= logLevelDebug
		req.socketDir = params.socketDir
		if params.ttrpc != "" {
			req.ttrpc = params.ttrpc
		}
		req.answer = func(address string) []byte { return appendResult(nil, 3, address, "ttrpc") }
		for _, ext := range params.extensions {
			if err := req.options(ext); err != nil {
				return nil, err
			}
		}
		return req, nil
	}
	if len(input) > 0 {
		if err := req.options(input); err != nil {
			return nil, err
		}
	}
	version, err := strconv.Atoi(lookup(env, "MAX_SHIM_VERSION"))
	if err != nil || version < 2 {
		req.answer = func(address string) []byte { return []byte(address) }
		return req, nil
	}
	version = min(version, 3)
	req.answer = func(address string) []byte {
		return []byte(`{"version":` + strconv.Itoa(version) + `,"address":` + quoteJSON(address) + `,"protocol":"ttrpc"}`)
	}
	return req, nil
}

const logLevelDebug = -4

// options takes from an Any what matters before there is a server.
func (r *request) options(any []byte) error {
	var url string
	var value []byte
	err := eachField(any, func(num int, _ uint64, data []byte) {
		switch num {
		case 1:
			url = string(data)
		case 2:
			value = data
		}
	})
	if err != nil {
		return wrap("decode the runtime's options", err)
	}
	for i := len(url) - 1; i >= 0; i-- {
		if url[i] == '/' {
			url = url[i+1:]
			break
		}
	}
	switch url {
	case "containerd.runc.v1.Options":
		return wrapNil("decode the runtime's options", eachField(value, func(num int, _ uint64, data []byte) {
			if num == 3 {
				r.shimCgroup = string(data)
			}
		}))
	case "runtimeoptions.v1.Options":
		return r.genericOptions(value)
	}
	return nil
}

// genericOptions takes the same from TOML. What can't be read is not this verb's to complain of: Create reads it too, and
// its errors have kinds.
func (r *request) genericOptions(value []byte) error {
	var path string
	var body []byte
	err := eachField(value, func(num int, _ uint64, data []byte) {
		switch num {
		case 2:
			path = string(data)
		case 3:
			body = data
		}
	})
	if err != nil {
		return wrap("decode the runtime's options", err)
	}
	if len(body) == 0 && path != "" {
		if body, err = readFile(path, maxOptions); err != nil {
			return nil
		}
	}
	EachSetting(string(body), func(key, value string) error {
		text, err := ParseText(value)
		switch {
		case err != nil:
		case key == "shimcgroup":
			r.shimCgroup = text
		case key == "loglevel":
			r.logLevel = text
		}
		return nil
	})
	return nil
}

// maxOptions is more than any file of options.
const maxOptions = 1 << 20

func wrapNil(step string, err error) error {
	if err == nil {
		return nil
	}
	return wrap(step, err)
}

// bootstrapParams is containerd.runtime.bootstrap.v1.BootstrapParams, as far as the verb needs it.
type bootstrapParams struct {
	id, namespace, ttrpc, socketDir string
	logLevel                        int32
	extensions                      [][]byte // Anys
}

func (p *bootstrapParams) parse(data []byte) error {
	var nested error
	err := eachField(data, func(num int, n uint64, data []byte) {
		switch num {
		case 1:
			p.id = string(data)
		case 2:
			p.namespace = string(data)
		case 3:
			p.logLevel = int32(n)
		case 5:
			p.ttrpc = string(data)
		case 8:
			err := eachField(data, func(num int, _ uint64, data []byte) {
				if num == 1 {
					p.extensions = append(p.extensions, data)
				}
			})
			if err != nil {
				nested = err
			}
		case 9:
			p.socketDir = string(data)
		}
	})
	if err == nil {
		err = nested
	}
	return err
}

// appendResult appends a containerd.runtime.bootstrap.v1.BootstrapResult.
func appendResult(b []byte, version int, address, protocol string) []byte {
	b = append(b, 1<<3, byte(version))
	b = appendString(b, 2, address)
	return appendString(b, 3, protocol)
}

func appendString(b []byte, num byte, s string) []byte {
	b = append(b, num<<3|2)
	n := len(s)
	for ; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	b = append(b, byte(n))
	return append(b, s...)
}

const errProto = failure("malformed protobuf")

// eachField calls f for each field of a protobuf message: n is a varint's value, data
// the bytes of a length-delimited field.
func eachField(b []byte, f func(num int, n uint64, data []byte)) error {
	for len(b) > 0 {
		tag, size := varint(b)
		if size == 0 || tag>>3 == 0 || tag>>3 > 1<<29-1 {
			return errProto
		}
		b = b[size:]
		num := int(tag >> 3)
		switch tag & 7 {
		case 0:
			n, size := varint(b)
			if size == 0 {
				return errProto
			}
			b = b[size:]
			f(num, n, nil)
		case 1, 5:
			size := 8
			if tag&7 == 5 {
				size = 4
			}
			if len(b) < size {
				return errProto
			}
			b = b[size:]
		case 2:
			n, size := varint(b)
			if size == 0 || n > uint64(len(b)-size) {
				return errProto
			}
			f(num, 0, b[size:size+int(n)])
			b = b[size+int(n):]
		default:
			return errProto
		}
	}
	return nil
}

// varint decodes one; its size is 0 if there is none.
func varint(b []byte) (n uint64, size int) {
	for i := 0; i < len(b) && i < 10; i++ {
		if i == 9 && b[i] > 1 {
			return 0, 0
		}
		n |= uint64(b[i]&0x7f) << (7 * i)
		if b[i] < 0x80 {
			return n, i + 1
		}
	}
	return 0, 0
}

func lookup(env []string, name string) string {
	// The last one counts: containerd appends its own to what it was started with.
	for i := len(env) - 1; i >= 0; i-- {
		if e := env[i]; len(e) > len(name) && e[len(name)] == '=' && e[:len(name)] == name {
			return e[len(name)+1:]
		}
	}
	return ""
}
