package upstream

// patient is the buffer of a stream that mostly waits: small while little
// comes, one of copyBuffers while reads fill it. Ten thousand idle WebSockets
// then cost what they hold, not what they might carry.
type patient struct {
	small []byte
	large *[]byte
}

// patientSize is the size of the small buffer, in bytes.
const patientSize = 1 << 10

// chunkFraming is how much of a buffer may be kept free for the framing of a
// chunk, in bytes.
const chunkFraming = 12

// next is what to read into.
func (p *patient) next() []byte {
	if p.large != nil {
		return *p.large
	}
	if p.small == nil {
		p.small = make([]byte, patientSize)
	}
	return p.small
}

// took is told how much was read into next and is used up by now.
func (p *patient) took(n int) {
	switch {
	case p.large == nil && n >= patientSize-chunkFraming:
		p.large = copyBuffers.Get().(*[]byte)
	case p.large != nil && n <= patientSize:
		p.free()
	}
}

// free gives the large buffer back.
func (p *patient) free() {
	if p.large != nil {
		copyBuffers.Put(p.large)
		p.large = nil
	}
}
