package criu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/encoding/protowire"
)

// filesImage has, after two magic words, a file_entry for each open file, each with its length before it. See criu's images/fdinfo.proto
// and regfile.proto.
const (
	filesImage   = "files.img"
	filesMagic   = 2 * 4
	fieldReg     = 3 // file_entry: the entry of a file that has a path
	fieldRegName = 6 // reg_file_entry: the path
)

// RenameFiles changes paths of open files in the images. When criu restores a file, it first looks for one that it is to inherit under the
// file's path without the slash that it begins with. So a file from outside can be given any key.
func RenameFiles(images string, names map[string]string) error {
	path := filepath.Join(images, filesImage)
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("criu: %w", err)
	}
	if data, err = renameFiles(data, names); err != nil {
		return fmt.Errorf("criu: %s: %w", path, err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("criu: %w", err)
	}
	return nil
}

var errShort = errors.New("cut off")

func renameFiles(data []byte, names map[string]string) ([]byte, error) {
	if len(data) < filesMagic {
		return nil, errShort
	}
	out := append(make([]byte, 0, len(data)), data[:filesMagic]...)
	for data = data[filesMagic:]; len(data) > 0; {
		if len(data) < 4 {
			return nil, errShort
		}
		n := binary.LittleEndian.Uint32(data)
		if data = data[4:]; uint64(n) > uint64(len(data)) {
			return nil, errShort
		}
		entry, err := edit(data[:n], fieldReg, func(reg []byte) ([]byte, error) {
			return edit(reg, fieldRegName, func(name []byte) ([]byte, error) {
				if to, ok := names[string(name)]; ok {
					return []byte(to), nil
				}
				return name, nil
			})
		})
		if err != nil {
			return nil, err
		}
		out = append(binary.LittleEndian.AppendUint32(out, uint32(len(entry))), entry...)
		data = data[n:]
	}
	return out, nil
}

// edit copies a message with a field of bytes changed.
func edit(msg []byte, field protowire.Number, change func([]byte) ([]byte, error)) ([]byte, error) {
	var out []byte
	for len(msg) > 0 {
		num, typ, tag := protowire.ConsumeTag(msg)
		if tag < 0 {
			return nil, protowire.ParseError(tag)
		}
		n := protowire.ConsumeFieldValue(num, typ, msg[tag:])
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		if num == field && typ == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(msg[tag:])
			value, err := change(value)
			if err != nil {
				return nil, err
			}
			out = protowire.AppendBytes(append(out, msg[:tag]...), value)
		} else {
			out = append(out, msg[:tag+n]...)
		}
		msg = msg[tag+n:]
	}
	return out, nil
}
