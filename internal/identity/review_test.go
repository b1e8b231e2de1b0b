package identity

import "testing"

// TestSharedEndpointProvesTheDomain: where every tenant is answered for, a
// claim that any tenant's administrator can have issued proves no address.
func TestSharedEndpointProvesTheDomain(t *testing.T) {
	for name, c := range map[string]struct {
		claims  map[string]any
		tenants []string
		want    string
	}{
		"called verified":     {claims: map[string]any{"email_verified": true}},
		"domain proven":       {claims: map[string]any{"xms_edov": true}, want: "a@corp.com"},
		"proven, then denied": {claims: map[string]any{"xms_edov": true, "email_verified": false}},
		"listed tenant":       {tenants: []string{"t-1"}, want: "a@corp.com"},
		"listed, denied":      {claims: map[string]any{"email_verified": false}, tenants: []string{"t-1"}},
	} {
		t.Run(name, func(t *testing.T) {
			iss, p := azureSetup(t, c.tenants...)
			for k, v := range c.claims {
				iss.User[k] = v
			}
			id, err := exchange(t, p, login(t, iss, p, verifier, nonce))
			if err != nil {
				t.Fatal(err)
			}
			if id.Email != c.want || c.want == "" && len(id.Claims["email"]) > 0 {
				t.Errorf("email %q, claim %v, want %q", id.Email, id.Claims["email"], c.want)
			}
		})
	}
}
