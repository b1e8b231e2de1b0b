package authz

import (
	"time"

	"postern/internal/record"
	"postern/internal/session"
)

// NewStatic makes an engine that reads every record from the store each time:
// for questions about an export of the data, not for serving.
func NewStatic(from record.Reader, now func() time.Time) (*Engine, error) {
	return New(Sources{
		Sessions:        direct[session.Session]{from, session.SessionType, session.DecodeSession},
		ServiceAccounts: direct[session.ServiceAccount]{from, session.ServiceAccountType, session.DecodeServiceAccount},
		Users:           direct[session.User]{from, session.UserType, session.DecodeUser},
		DirectoryUsers:  direct[session.DirectoryUser]{from, session.DirectoryUserType, session.DecodeDirectoryUser},
		DirectoryGroups: direct[session.DirectoryGroup]{from, session.DirectoryGroupType, session.DecodeDirectoryGroup},
		Now:             now,
	})
}
