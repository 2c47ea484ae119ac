package shim

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"
)

func TestMessagesOfStreamsAreRead(t *testing.T) {
	field := func(num protowire.Number, s string) []byte {
		return protowire.AppendString(protowire.AppendTag(nil, num, protowire.BytesType), s)
	}
	for _, tt := range []struct {
		name   string
		typ    string
		value  []byte
		bytes  string
		number uint64
		bad    bool
	}{
		{"an ID", initType, field(1, "c-stdout"), "c-stdout", 0, false},
		{"one with a prefix", "types.containerd.io/" + initType, field(1, "x"), "x", 0, false},
		{"unknown fields are passed over", initType, append(field(7, "later"), field(1, "x")...), "x", 0, false},
		{"a number", updateType, []byte{8, 0x80, 0x80, 4}, "", 65536, false},
		{"nothing", dataType, nil, "", 0, false},
		{"another type", "google.protobuf.Empty", nil, "", 0, true},
		{"one cut short", dataType, field(1, "abc")[:3], "", 0, true},
		{"no message", dataType, []byte{0xff}, "", 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := tt.typ
			if tt.bad && tt.value == nil || tt.typ[0] == 't' {
				want = initType
			}
			got, number, err := streamMessage(&anypb.Any{TypeUrl: tt.typ, Value: tt.value}, want)
			if (err != nil) != tt.bad || string(got) != tt.bytes || number != tt.number {
				t.Errorf("%q, %d, %v", got, number, err)
			}
		})
	}
}

func FuzzMessagesOfStreams(f *testing.F) {
	f.Add([]byte{10, 1, 'x'})
	f.Add([]byte{8, 0x80, 0x80, 4})
	f.Fuzz(func(t *testing.T, value []byte) {
		got, _, err := streamMessage(&anypb.Any{TypeUrl: dataType, Value: value}, dataType)
		if err == nil && len(got) > 0 && !bytes.Contains(value, got) {
			t.Errorf("%q is not in %q", got, value)
		}
	})
}
