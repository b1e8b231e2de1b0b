package file

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"

	"postern/internal/record"
)

// checkFile looks at a database file before bbolt maps it into memory, where
// a page that lies about itself would crash the process instead of giving an
// error. A missing file is fine. Files larger than limit are checked only for
// being whole.
//
// The layout (bbolt's version 2): pages of a fixed size; each begins with id
// (8 bytes), flags (2), count (2) and overflow (4, how many more pages belong
// to it). Pages 0 and 1 hold two metas, written in turn, each with a checksum;
// the valid one with the higher transaction id counts. Numbers are in the
// machine's own order, as bbolt writes them.
func checkFile(path string, limit int64) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	m, err := newestMeta(f, fi.Size())
	if err != nil {
		return damaged(path, err.Error())
	}
	if need := int64(m.pages) * int64(m.pageSize); fi.Size() < need {
		return damaged(path, fmt.Sprintf("%d of %d bytes are missing at its end", need-fi.Size(), need))
	}
	if fi.Size() > limit {
		return nil
	}
	c := checker{r: f, meta: m, seen: make([]bool, m.pages)}
	if err := c.tree(m.root, 0); err != nil {
		return damaged(path, err.Error())
	}
	if err := c.freelist(); err != nil {
		return damaged(path, err.Error())
	}
	return nil
}

var order = binary.NativeEndian

const (
	pageHeader  = 16
	metaBytes   = 64
	metaMagic   = 0xED0CDAED
	metaVersion = 2
	noFreelist  = ^uint64(0)

	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagFreelist = 0x10
	elementSize  = 16
	bucketHeader = 16 // root page id and sequence
	flagBucket   = 0x01
	maxDepth     = 64
)

type meta struct {
	pageSize              uint32
	root, freelist, pages uint64
	txid                  uint64
}

func newestMeta(r io.ReaderAt, size int64) (best meta, err error) {
	found := false
	// The second meta's place depends on the page size, which a damaged
	// first one cannot tell, so all usual sizes are tried.
	for _, at := range []int64{0, 1 << 10, 2 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10} {
		var b [pageHeader + metaBytes]byte
		if _, err := r.ReadAt(b[:], at); err != nil {
			continue
		}
		p := b[pageHeader:]
		sum := fnv.New64a()
		sum.Write(p[:56])
		m := meta{pageSize: order.Uint32(p[8:]), root: order.Uint64(p[16:]), freelist: order.Uint64(p[32:]),
			pages: order.Uint64(p[40:]), txid: order.Uint64(p[48:])}
		if order.Uint32(p) != metaMagic || order.Uint32(p[4:]) != metaVersion || order.Uint64(p[56:]) != sum.Sum64() {
			continue
		}
		if at != 0 && at != int64(m.pageSize) {
			continue // a meta's bytes inside some other page
		}
		if m.pageSize < 1<<9 || m.pageSize > 1<<16 || m.pages < 2 || m.pages > 1<<40 {
			continue
		}
		if !found || m.txid > best.txid {
			best, found = m, true
		}
	}
	if !found {
		return meta{}, fmt.Errorf("it is not a record database, or both copies of its head are damaged; it has %d bytes", size)
	}
	return best, nil
}

type checker struct {
	r    io.ReaderAt
	meta meta
	seen []bool
}

// page reads a page whole and marks it as used.
func (c *checker) page(id uint64) ([]byte, error) {
	if id < 2 || id >= c.meta.pages {
		return nil, fmt.Errorf("page %d is out of bounds", id)
	}
	head := make([]byte, c.meta.pageSize)
	if _, err := c.r.ReadAt(head, int64(id)*int64(c.meta.pageSize)); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	over := uint64(order.Uint32(head[12:]))
	if got := order.Uint64(head); got != id || id+over >= c.meta.pages {
		return nil, fmt.Errorf("page %d has a wrong head", id)
	}
	for i := id; i <= id+over; i++ {
		if c.seen[i] {
			return nil, fmt.Errorf("page %d is used twice", i)
		}
		c.seen[i] = true
	}
	if over == 0 {
		return head, nil
	}
	b := make([]byte, int64(c.meta.pageSize)*int64(over+1))
	_, err := c.r.ReadAt(b, int64(id)*int64(c.meta.pageSize))
	return b, err
}

// tree checks a bucket's tree of pages, and the buckets inside it.
func (c *checker) tree(id uint64, depth int) error {
	b, err := c.page(id)
	if err != nil {
		return err
	}
	return c.node(b, id, depth)
}

func (c *checker) node(b []byte, id uint64, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("page %d is nested too deeply", id)
	}
	flags, count := order.Uint16(b[8:]), int(order.Uint16(b[10:]))
	if pageHeader+count*elementSize > len(b) {
		return fmt.Errorf("page %d counts more entries than it has room for", id)
	}
	if flags == flagBranch && count == 0 || flags != flagBranch && flags != flagLeaf {
		return fmt.Errorf("page %d is of an unexpected kind", id)
	}
	var last []byte
	for i := range count {
		at := pageHeader + i*elementSize
		e := b[at : at+elementSize]
		var pos, ksize, vsize uint32
		if flags == flagBranch {
			pos, ksize = order.Uint32(e), order.Uint32(e[4:])
		} else {
			pos, ksize, vsize = order.Uint32(e[4:]), order.Uint32(e[8:]), order.Uint32(e[12:])
		}
		from := uint64(at) + uint64(pos)
		if from+uint64(ksize)+uint64(vsize) > uint64(len(b)) {
			return fmt.Errorf("page %d has an entry beyond its end", id)
		}
		key := b[from : from+uint64(ksize)]
		if i > 0 && string(key) <= string(last) {
			return fmt.Errorf("page %d has its entries out of order", id)
		}
		last = key
		if flags == flagBranch {
			if err := c.tree(order.Uint64(e[8:]), depth+1); err != nil {
				return err
			}
			continue
		}
		if order.Uint32(e)&flagBucket == 0 {
			continue
		}
		value := b[from+uint64(ksize) : from+uint64(ksize)+uint64(vsize)]
		if len(value) < bucketHeader {
			return fmt.Errorf("page %d has a broken bucket", id)
		}
		root := order.Uint64(value)
		if root != 0 {
			if err := c.tree(root, depth+1); err != nil {
				return err
			}
			continue
		}
		// A small bucket lies within the value as a page of its own.
		if inner := value[bucketHeader:]; len(inner) < pageHeader {
			return fmt.Errorf("page %d has a broken small bucket", id)
		} else if err := c.node(inner, id, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// freelist checks that no page in use is listed as free, since it would be
// overwritten.
func (c *checker) freelist() error {
	if c.meta.freelist == noFreelist {
		return nil
	}
	b, err := c.page(c.meta.freelist)
	if err != nil {
		return err
	}
	if order.Uint16(b[8:]) != flagFreelist {
		return fmt.Errorf("page %d is not a list of free pages", c.meta.freelist)
	}
	n, list := uint64(order.Uint16(b[10:])), b[pageHeader:]
	if n == 0xFFFF { // too many for two bytes: the number is the first entry
		if len(list) < 8 {
			return fmt.Errorf("page %d is cut off", c.meta.freelist)
		}
		n, list = order.Uint64(list), list[8:]
	}
	if n > uint64(len(list)/8) {
		return fmt.Errorf("page %d lists more free pages than it has room for", c.meta.freelist)
	}
	last := uint64(1)
	for i := range n {
		id := order.Uint64(list[8*i:])
		if id <= last || id >= c.meta.pages || c.seen[id] {
			return fmt.Errorf("page %d is listed as free wrongly", id)
		}
		last = id
	}
	return nil
}

var errRecord = fmt.Errorf("%w: a stored record is damaged; restore the directory from a backup, or delete the record", record.ErrUnavailable)
