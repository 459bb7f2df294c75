package service

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/indigomail/indigo/internal/queue"
)

// maxExportLine bounds the description of one message: 100,000 recipients with their failures.
const maxExportLine = 64 << 20

// ReadExport reads what an export is made of, as it goes over the control socket and as it stands in a file: for each message
// a line of JSON (queue.Exported), then as many bytes of content as it says.
func ReadExport(r io.Reader, use func(queue.Exported, io.Reader) error) error {
	b := bufio.NewReaderSize(r, 64<<10)
	for n := 1; ; n++ {
		text, err := readLine(b)
		if errors.Is(err, io.EOF) && len(text) == 0 {
			return nil
		}
		var e queue.Exported
		if err == nil {
			err = json.Unmarshal(text, &e)
		}
		if err == nil && (e.Size < 0 || len(e.Envelope.Recipients) == 0) {
			err = errors.New("it is no message")
		}
		if err != nil {
			return fmt.Errorf("message %d of the export: %w", n, err)
		}
		content := &io.LimitedReader{R: b, N: e.Size}
		if err := use(e, content); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, content); err != nil {
			return err
		}
		if content.N > 0 {
			return fmt.Errorf("message %d of the export: cut short by %d bytes", n, content.N)
		}
	}
}

func readLine(b *bufio.Reader) (line []byte, err error) {
	for {
		part, err := b.ReadSlice('\n')
		line = append(line, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
		if len(line) > maxExportLine {
			return nil, fmt.Errorf("a line of over %d bytes", maxExportLine)
		}
	}
}

// WriteExport writes one message as ReadExport reads it.
func WriteExport(w io.Writer, e queue.Exported, content io.Reader) error {
	if err := json.NewEncoder(w).Encode(e); err != nil {
		return err
	}
	n, err := io.Copy(w, content)
	if err == nil && n != e.Size {
		err = fmt.Errorf("message %s: %d bytes of content, not %d", e.ID, n, e.Size)
	}
	return err
}
