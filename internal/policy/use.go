package policy

// Holds reports whether the criterion alone is true of in, whatever operator
// and action it stands under. It is for hints, such as the routes portal's;
// only Evaluate decides.
func (u *Use) Holds(in *Input) bool {
	return u.test != nil && u.test(in).ok
}
