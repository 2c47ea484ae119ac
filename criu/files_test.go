package criu

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// fileEntry is a file_entry of a regular file, with fields around those that matter.
func fileEntry(name string) []byte {
	reg := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 7)
	reg = protowire.AppendString(protowire.AppendTag(reg, fieldRegName, protowire.BytesType), name)
	reg = protowire.AppendVarint(protowire.AppendTag(reg, 9, protowire.VarintType), 1)
	entry := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 1)
	entry = protowire.AppendBytes(protowire.AppendTag(entry, fieldReg, protowire.BytesType), reg)
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(entry))), entry...)
}

func image(names ...string) []byte {
	img := []byte("magicsss")
	for _, name := range names {
		img = append(img, fileEntry(name)...)
	}
	return img
}

func TestFilesAreRenamedAndNothingElseIsChanged(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, filesImage)
	if err := os.WriteFile(path, image("/bin/sh", "file[1d:5]", "/etc"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := RenameFiles(dir, map[string]string{"file[1d:5]": "/pipe:[1d:5]"}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := image("/bin/sh", "/pipe:[1d:5]", "/etc"); !bytes.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestAnImageThatIsCutOffIsNotRenamed(t *testing.T) {
	whole := image("/bin/sh", "/etc")
	for n := range len(whole) {
		if _, err := renameFiles(whole[:n], nil); err == nil && n != len(image()) && n != len(image("/bin/sh")) {
			t.Errorf("no error for %d of %d bytes", n, len(whole))
		}
	}
}
