package shim

import (
	"context"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// The messages of containerd.runtime.sandbox.v1. The package that containerd generates of them also has
// its gRPC stubs, and so links all of grpc, whose initialisers each start of a shim would pay for. Tests
// hold these against that package.

// sandboxRequest is any request of the service: they agree in their numbers. StopSandbox and SandboxStatus have a number as second field,
// CreateSandbox a string.
type sandboxRequest struct {
	id          string
	bundle      string      // CreateSandbox
	rootfs      int         // CreateSandbox: how many mounts
	options     *anypb.Any  // CreateSandbox
	netns       string      // CreateSandbox
	annotations [][2]string // CreateSandbox
	number      uint64      // StopSandbox: the timeout in seconds; SandboxStatus: verbose
}

func (r *sandboxRequest) parse(data []byte) error {
	return eachField(data, func(num protowire.Number, n uint64, b []byte) error {
		switch num {
		case 1:
			r.id = string(b)
		case 2:
			r.bundle, r.number = string(b), n
		case 3:
			r.rootfs++
		case 4:
			r.options = new(anypb.Any)
			return proto.Unmarshal(b, r.options)
		case 5:
			r.netns = string(b)
		case 6:
			k, v, err := mapEntry(b)
			r.annotations = append(r.annotations, [2]string{k, v})
			return err
		}
		return nil
	})
}

// eachField calls f with each field of a message: n is the value of a number, data that of what has a length.
func eachField(msg []byte, f func(num protowire.Number, n uint64, data []byte) error) error {
	for len(msg) > 0 {
		num, typ, size := protowire.ConsumeTag(msg)
		if size < 0 {
			return protowire.ParseError(size)
		}
		msg = msg[size:]
		var n uint64
		var data []byte
		switch typ {
		case protowire.VarintType:
			n, size = protowire.ConsumeVarint(msg)
		case protowire.BytesType:
			data, size = protowire.ConsumeBytes(msg)
		default:
			if size = protowire.ConsumeFieldValue(num, typ, msg); size >= 0 {
				msg = msg[size:]
				continue
			}
		}
		if size < 0 {
			return protowire.ParseError(size)
		}
		msg = msg[size:]
		if err := f(num, n, data); err != nil {
			return err
		}
	}
	return nil
}

// mapEntry is an entry of a map<string, string>.
func mapEntry(data []byte) (key, value string, err error) {
	err = eachField(data, func(num protowire.Number, _ uint64, b []byte) error {
		switch num {
		case 1:
			key = string(b)
		case 2:
			value = string(b)
		}
		return nil
	})
	return key, value, err
}

// A wireMessage is a response being made.
type wireMessage []byte

func (m *wireMessage) string(num protowire.Number, s string) {
	if s != "" {
		*m = protowire.AppendString(protowire.AppendTag(*m, num, protowire.BytesType), s)
	}
}

func (m *wireMessage) number(num protowire.Number, n uint64) {
	if n != 0 {
		*m = protowire.AppendVarint(protowire.AppendTag(*m, num, protowire.VarintType), n)
	}
}

func (m *wireMessage) message(num protowire.Number, msg proto.Message) error {
	data, err := proto.Marshal(msg)
	if err == nil {
		*m = protowire.AppendBytes(protowire.AppendTag(*m, num, protowire.BytesType), data)
	}
	return err
}

// time leaves out a time that has not come.
func (m *wireMessage) time(num protowire.Number, t time.Time) error {
	if t.IsZero() {
		return nil
	}
	return m.message(num, timestamppb.New(t))
}

func (m *wireMessage) entry(num protowire.Number, key, value string) {
	var e wireMessage
	e.string(1, key)
	e.string(2, value)
	*m = protowire.AppendBytes(protowire.AppendTag(*m, num, protowire.BytesType), e)
}

// sandboxMethod makes a ttrpc method of one that takes a request and fills a response in. A message without fields keeps the
// bytes of those that it does not know, and has them sent: it stands for all of the service's.
func sandboxMethod(call func(context.Context, *sandboxRequest, *wireMessage) error) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		var raw emptypb.Empty
		if err := unmarshal(&raw); err != nil {
			return nil, err
		}
		var req sandboxRequest
		if err := req.parse(raw.ProtoReflect().GetUnknown()); err != nil {
			return nil, wireError(invalid("request: %v", err))
		}
		var resp wireMessage
		if err := call(ctx, &req, &resp); err != nil {
			return nil, wireError(err)
		}
		out := new(emptypb.Empty)
		out.ProtoReflect().SetUnknown([]byte(resp))
		return out, nil
	}
}

// sandboxMethods are those of the service; UpdateSandbox, which is optional, is not there, and so refused as not implemented.
func sandboxMethods(s *sandboxService) map[string]ttrpc.Method {
	return map[string]ttrpc.Method{
		"CreateSandbox": sandboxMethod(func(ctx context.Context, r *sandboxRequest, _ *wireMessage) error {
			return s.create(ctx, r)
		}),
		"StartSandbox": sandboxMethod(func(ctx context.Context, r *sandboxRequest, m *wireMessage) error {
			st, spec, err := s.start(ctx, r.id)
			if err != nil {
				return err
			}
			m.number(1, uint64(st.pid))
			if err := m.time(2, st.createdAt); err != nil {
				return err
			}
			return m.message(3, spec)
		}),
		"Platform": sandboxMethod(func(_ context.Context, r *sandboxRequest, m *wireMessage) error {
			p, err := s.platform(r.id)
			if err != nil {
				return err
			}
			return m.message(1, p)
		}),
		"StopSandbox": sandboxMethod(func(ctx context.Context, r *sandboxRequest, _ *wireMessage) error {
			return s.stop(ctx, r.id, time.Duration(r.number)*time.Second)
		}),
		"WaitSandbox": sandboxMethod(func(ctx context.Context, r *sandboxRequest, m *wireMessage) error {
			st, err := s.wait(ctx, r.id)
			if err != nil {
				return err
			}
			m.number(1, uint64(st.exitStatus))
			return m.time(2, st.exitedAt)
		}),
		"SandboxStatus": sandboxMethod(func(_ context.Context, r *sandboxRequest, m *wireMessage) error {
			st, info, err := s.status(r.id, r.number != 0)
			if err != nil {
				return err
			}
			m.string(1, r.id)
			m.number(2, uint64(st.pid))
			m.string(3, st.state)
			for _, kv := range info {
				m.entry(4, kv[0], kv[1])
			}
			if err := m.time(5, st.createdAt); err != nil {
				return err
			}
			return m.time(6, st.exitedAt)
		}),
		"PingSandbox": sandboxMethod(func(_ context.Context, r *sandboxRequest, _ *wireMessage) error {
			_, err := s.find(r.id)
			return err
		}),
		"ShutdownSandbox": sandboxMethod(func(ctx context.Context, r *sandboxRequest, _ *wireMessage) error {
			return s.shutdown(ctx, r.id)
		}),
		"SandboxMetrics": sandboxMethod(func(_ context.Context, r *sandboxRequest, m *wireMessage) error {
			stats, err := s.metrics(r.id)
			if err != nil {
				return err
			}
			return m.message(1, &types.Metric{Timestamp: timestamppb.Now(), ID: r.id, Data: stats})
		}),
	}
}
