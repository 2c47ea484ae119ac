package harness

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"runtime"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ImageName is the name of the image that [WriteImage] makes.
const ImageName = "rsys.io/busybox:latest"

// busybox is the host's, which must be static: the image has no library.
const busybox = "/bin/busybox"

var etc = map[string]string{
	"passwd": "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\n" +
		"app:x:1000:1000:app:/home/app:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
	"group":    "root:x:0:\ndaemon:x:1:\nstaff:x:50:app\napp:x:1000:\nnogroup:x:65534:\n",
	"hostname": "image\n",
}

// WriteImage writes a small image as an OCI layout in a tar file, which Docker
// can load as well. It is made from this machine's busybox alone, so it needs
// no network, and is the same on every run on one machine.
func WriteImage(w io.Writer) error { return WriteImageFor(w, ImageName, "sh") }

// WriteImageFor is WriteImage with another name, and with what a container of it runs.
func WriteImageFor(w io.Writer, name string, cmd ...string) error {
	layer, err := layer()
	if err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	return writeImage(w, name, cmd, layer)
}

// writeImage writes an image of one layer.
func writeImage(w io.Writer, name string, cmd []string, layer []byte) error {
	out := tar.NewWriter(w)
	put := func(name string, data []byte) error {
		if err := out.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		_, err := out.Write(data)
		return err
	}
	blob := func(mediaType string, v any) (ocispec.Descriptor, error) {
		data, ok := v.([]byte)
		if !ok {
			var err error
			if data, err = json.Marshal(v); err != nil {
				return ocispec.Descriptor{}, err
			}
		}
		sum := sha256.Sum256(data)
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.NewDigestFromBytes(digest.SHA256, sum[:]), Size: int64(len(data))}
		return d, put(blobPath(d), data)
	}
	epoch := time.Unix(0, 0).UTC()
	layerDesc, err := blob(ocispec.MediaTypeImageLayer, layer)
	if err != nil {
		return err
	}
	platform := ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	config, err := blob(ocispec.MediaTypeImageConfig, ocispec.Image{
		Created: &epoch, Platform: platform,
		Config: ocispec.ImageConfig{Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, Cmd: cmd},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layerDesc.Digest}},
	})
	if err != nil {
		return err
	}
	manifest, err := blob(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config, Layers: []ocispec.Descriptor{layerDesc},
	})
	if err != nil {
		return err
	}
	manifest.Platform = &platform
	manifest.Annotations = map[string]string{"io.containerd.image.name": name, ocispec.AnnotationRefName: "latest"}
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{manifest}})
	if err != nil {
		return err
	}
	// Docker 20.10 reads this in place of the index.
	docker, err := json.Marshal([]map[string]any{{
		"Config": blobPath(config), "RepoTags": []string{ImageName}, "Layers": []string{blobPath(layerDesc)},
	}})
	if err != nil {
		return err
	}
	if err := put("manifest.json", docker); err != nil {
		return err
	}
	if err := put("index.json", index); err != nil {
		return err
	}
	if err := put("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	return out.Close()
}

func blobPath(d ocispec.Descriptor) string { return "blobs/sha256/" + d.Digest.Encoded() }

// layer makes the root file system: busybox, a link for each of its applets,
// and what programs expect to find in /etc.
func layer() ([]byte, error) {
	bb, err := os.ReadFile(busybox)
	if err != nil {
		return nil, fmt.Errorf("%w (hack/setup installs busybox-static)", err)
	}
	if bytes.Contains(bb, []byte("/lib64/ld-linux")) || bytes.Contains(bb, []byte("/lib/ld-linux")) {
		return nil, fmt.Errorf("%s is not static (install busybox-static)", busybox)
	}
	applets, err := exec.Command(busybox, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("ask %s for its applets: %w", busybox, err)
	}
	var buf bytes.Buffer
	out := tar.NewWriter(&buf)
	add := func(h tar.Header, data string) {
		h.Size = int64(len(data))
		h.ModTime = time.Unix(0, 0)
		if err == nil {
			err = out.WriteHeader(&h)
		}
		if err == nil {
			_, err = io.WriteString(out, data)
		}
	}
	for _, d := range []string{"bin", "dev", "etc", "home", "mnt", "proc", "root", "run", "sbin", "sys", "usr", "usr/bin", "usr/sbin", "var"} {
		add(tar.Header{Name: d + "/", Mode: 0o755, Typeflag: tar.TypeDir}, "")
	}
	add(tar.Header{Name: "tmp/", Mode: 0o1777, Typeflag: tar.TypeDir}, "")
	add(tar.Header{Name: "home/app/", Mode: 0o755, Uid: 1000, Gid: 1000, Typeflag: tar.TypeDir}, "")
	add(tar.Header{Name: "bin/busybox", Mode: 0o755, Typeflag: tar.TypeReg}, string(bb))
	for _, name := range []string{"group", "hostname", "passwd"} {
		add(tar.Header{Name: "etc/" + name, Mode: 0o644, Typeflag: tar.TypeReg}, etc[name])
	}
	for _, applet := range strings.Fields(string(applets)) {
		if applet == "bin/busybox" || path.Base(applet) == "linuxrc" {
			continue
		}
		add(tar.Header{Name: applet, Mode: 0o777, Linkname: "/bin/busybox", Typeflag: tar.TypeSymlink}, "")
	}
	if err == nil {
		err = out.Close()
	}
	return buf.Bytes(), err
}
