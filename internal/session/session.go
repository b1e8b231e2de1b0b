// Package session holds the words about who is signed in: the records
// (Session, User, ServiceAccount, directory entries, local accounts), the
// signed pointer to a session that a browser or program carries (Handle), the
// keys that sign and seal (Keys, one derived key per purpose), signed links
// between our own hosts, and the checks on addresses that a browser is sent to.
//
// Nothing here does I/O or reads a clock: time arrives as an argument.
// Tokens, handles and keys have types that redact themselves when printed or
// logged; only JSON encoding of a record shows them, because the store seals
// what it writes.
package session

import (
	"fmt"
	"log/slog"
	"time"
)

// Session is one sign-in of one person (wire-contract.md §3.3). Its record id
// is the handle's jti.
type Session struct {
	ID                   string             `json:"id"`
	UserID               string             `json:"userId,omitempty"`
	DeviceCredentials    []DeviceCredential `json:"deviceCredentials,omitempty"`
	IssuedAt             time.Time          `json:"issuedAt,omitzero"`
	ExpiresAt            time.Time          `json:"expiresAt,omitzero"`
	AccessedAt           time.Time          `json:"accessedAt,omitzero"`
	IDToken              *IDToken           `json:"idToken,omitempty"`
	OAuthToken           *OAuthToken        `json:"oauthToken,omitempty"`
	Claims               Claims             `json:"claims,omitempty"`
	Audience             []string           `json:"audience,omitempty"`
	RefreshDisabled      bool               `json:"refreshDisabled,omitempty"`
	IDPID                string             `json:"idpId,omitempty"`
	ImpersonateSessionID string             `json:"impersonateSessionId,omitempty"`

	// Of ours, beyond the contract.

	// ParentSessionID names the browser session that a program's session was
	// made from; it ends with it.
	ParentSessionID string `json:"parentSessionId,omitempty"`
	// Program says that the session was made for a program by a click at the
	// sign-in host (wire-contract.md §6.1).
	Program bool `json:"program,omitempty"`
	// UserAgent and RemoteIP tell people their sessions apart.
	UserAgent string `json:"userAgent,omitempty"`
	RemoteIP  string `json:"remoteIp,omitempty"`
	// RefreshedAt is when tokens were last renewed; refreshes keep a distance.
	RefreshedAt time.Time `json:"refreshedAt,omitzero"`
	// IDPSessionID is the provider's own session id (claim sid), for
	// front- and back-channel logout.
	IDPSessionID string `json:"idpSessionId,omitempty"`

	// RecordVersion is the version of the record this was read from.
	RecordVersion uint64 `json:"-"`
}

// DeviceCredential is the answer of one device type: a credential, or the
// statement that the person has none.
type DeviceCredential struct {
	TypeID      string `json:"typeId"`
	ID          string `json:"id,omitempty"`
	Unavailable bool   `json:"unavailable,omitempty"`
}

// IDToken is the identity token of the last sign-in or refresh.
type IDToken struct {
	Issuer    string    `json:"issuer,omitempty"`
	Subject   string    `json:"subject,omitempty"`
	ExpiresAt time.Time `json:"expiresAt,omitzero"`
	IssuedAt  time.Time `json:"issuedAt,omitzero"`
	Raw       Token     `json:"raw,omitempty"`
}

// OAuthToken is what the identity provider gave for calling it again.
type OAuthToken struct {
	AccessToken  Token     `json:"accessToken,omitempty"`
	TokenType    string    `json:"tokenType,omitempty"`
	ExpiresAt    time.Time `json:"expiresAt,omitzero"`
	RefreshToken Token     `json:"refreshToken,omitempty"`
}

// Expired says whether the session is over at now. A session without an end
// was not made by Postern and counts as over.
func (s *Session) Expired(now time.Time) bool {
	return s == nil || !now.Before(s.ExpiresAt)
}

// LogValue shows a session in logs by its ids alone.
func (s *Session) LogValue() slog.Value {
	if s == nil {
		return slog.StringValue("none")
	}
	return slog.GroupValue(slog.String("id", s.ID), slog.String("user", s.UserID))
}

// Format prints a session by its ids alone, whatever the verb.
func (s *Session) Format(f fmt.State, _ rune) {
	if s == nil {
		_, _ = f.Write([]byte("session(none)"))
		return
	}
	fmt.Fprintf(f, "session(%s user %s)", s.ID, s.UserID)
}

// User is a person, by provider and subject (decision 14): ID is the bare
// subject for the first provider and <name>/<subject> for others.
type User struct {
	ID                  string   `json:"id"`
	Name                string   `json:"name,omitempty"`
	Email               string   `json:"email,omitempty"`
	Claims              Claims   `json:"claims,omitempty"`
	DeviceCredentialIDs []string `json:"deviceCredentialIds,omitempty"`

	// IDPID is the provider that vouches for this user.
	IDPID string `json:"idpId,omitempty"`

	RecordVersion uint64 `json:"-"`
}

// ServiceAccount is a long-lived identity for a program (wire-contract.md §6.4).
type ServiceAccount struct {
	ID           string    `json:"id"`
	NamespaceID  string    `json:"namespaceId,omitempty"`
	OriginatorID string    `json:"originatorId,omitempty"`
	Description  string    `json:"description,omitempty"`
	UserID       string    `json:"userId,omitempty"`
	ExpiresAt    time.Time `json:"expiresAt,omitzero"` // zero: never
	IssuedAt     time.Time `json:"issuedAt,omitzero"`
	AccessedAt   time.Time `json:"accessedAt,omitzero"`

	// Disabled refuses the account without deleting it.
	Disabled bool `json:"disabled,omitempty"`

	RecordVersion uint64 `json:"-"`
}

// Usable says whether the account may act at now.
func (a *ServiceAccount) Usable(now time.Time) bool {
	return a != nil && !a.Disabled && (a.ExpiresAt.IsZero() || now.Before(a.ExpiresAt))
}

// DirectoryUser is what a directory says about a user. Directory records are
// free-form in the contract, so their keys keep the snake case of the
// interchange format (wire-contract.md §5).
type DirectoryUser struct {
	ID          string   `json:"id"`
	GroupIDs    []string `json:"group_ids"`
	DisplayName string   `json:"display_name,omitempty"`
	Email       string   `json:"email,omitempty"`

	RecordVersion uint64 `json:"-"`
}

// DirectoryGroup is a group of a directory.
type DirectoryGroup struct {
	ID    string `json:"id"`
	Name  string `json:"name,omitempty"`
	Email string `json:"email,omitempty"`

	RecordVersion uint64 `json:"-"`
}

// LocalAccount is an account whose password Postern checks itself
// (decision 15).
type LocalAccount struct {
	ID           string         `json:"id"`
	Email        string         `json:"email"`
	Name         string         `json:"name,omitempty"`
	Groups       []string       `json:"groups,omitempty"`
	Claims       map[string]any `json:"claims,omitempty"`
	PasswordHash Token          `json:"passwordHash,omitempty"` // PHC string, $argon2id$...
	Disabled     bool           `json:"disabled,omitempty"`
	CreatedAt    time.Time      `json:"createdAt,omitzero"`
	UpdatedAt    time.Time      `json:"updatedAt,omitzero"`

	RecordVersion uint64 `json:"-"`
}

// Caller is who is asking. A nil Caller, or one with neither Session nor
// ServiceAccount, is anonymous.
type Caller struct {
	ID             string // session or service-account id; the real one under impersonation
	Handle         *Handle
	Session        *Session // the evaluated session
	ServiceAccount *ServiceAccount
	User           *User
	Directory      *DirectoryUser
	Groups         []*DirectoryGroup
	// ImpersonatedBy is the real session when Session is one that it
	// impersonates; nil otherwise.
	ImpersonatedBy *Session
}

// Anonymous says that nobody is signed in.
func (c *Caller) Anonymous() bool {
	return c == nil || (c.Session == nil && c.ServiceAccount == nil)
}

// UserID is the id of the user asking, or "".
func (c *Caller) UserID() string {
	switch {
	case c == nil:
		return ""
	case c.Session != nil:
		return c.Session.UserID
	case c.ServiceAccount != nil:
		return c.ServiceAccount.UserID
	}
	return ""
}

// Email is the directory's address of the caller, else the user record's,
// else "" (wire-contract.md §4.2).
func (c *Caller) Email() string {
	switch {
	case c == nil:
		return ""
	case c.Directory != nil && c.Directory.Email != "":
		return c.Directory.Email
	case c.User != nil:
		return c.User.Email
	}
	return ""
}
