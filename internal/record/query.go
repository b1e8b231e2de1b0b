package record

import (
	"bytes"
	"encoding/json"
	"strings"
)

// Keeps tells whether the query's Text and Match keep a record.
func (q Query) Keeps(rec *Record) bool {
	if q.Text != "" && !contains(rec, strings.ToLower(q.Text)) {
		return false
	}
	return q.Match == nil || q.Match(rec)
}

// Filters tells whether Keeps can ever refuse a record.
func (q Query) Filters() bool { return q.Text != "" || q.Match != nil }

func contains(rec *Record, lower string) bool {
	if strings.Contains(strings.ToLower(rec.ID), lower) {
		return true
	}
	// Only strings that are values count, not keys (wire contract §11).
	dec := json.NewDecoder(bytes.NewReader(rec.Data))
	dec.UseNumber()
	var objects []bool // for each open bracket: is it an object?
	key := false       // the next string is a key
	for {
		tok, err := dec.Token()
		if err != nil {
			return false
		}
		switch v := tok.(type) {
		case json.Delim:
			switch v {
			case '{', '[':
				objects = append(objects, v == '{')
				key = v == '{'
				continue
			default:
				objects = objects[:len(objects)-1]
			}
		case string:
			if key {
				key = false
				continue
			}
			if strings.Contains(strings.ToLower(v), lower) {
				return true
			}
		}
		key = len(objects) > 0 && objects[len(objects)-1]
	}
}
