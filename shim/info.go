package shim

import (
	"fmt"
	"io"

	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// printInfo answers -info: it reads the runtime's options, if any, and writes a RuntimeInfo.
func printInfo(version string, in io.Reader, out io.Writer) error {
	data, err := io.ReadAll(io.LimitReader(in, 10<<20))
	if err != nil {
		return fmt.Errorf("read the options: %w", err)
	}
	info := &types.RuntimeInfo{Name: RuntimeName, Version: &types.RuntimeVersion{Version: version}}
	if len(data) > 0 {
		options := new(anypb.Any)
		if err := proto.Unmarshal(data, options); err != nil {
			return fmt.Errorf("decode the options: %w", err)
		}
		if _, err := parseOptions(options); err != nil {
			return err
		}
		info.Options = options
	}
	if info.Features, err = featuresAny(); err != nil {
		return err
	}
	data, err = proto.Marshal(info)
	if err != nil {
		return err
	}
	_, err = out.Write(data)
	return err
}
