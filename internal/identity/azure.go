package identity

import "strings"

// azure's user id is the claim oid, since sub differs per client. Its shared
// endpoints answer for every tenant there is, so that they need a list of
// tenants, and addresses need the verified-domain claim (decision 14).
var azure = vendor{
	url:    "https://login.microsoftonline.com/common/v2.0",
	params: map[string]string{"prompt": "select_account"},
	multiTenant: func(issuer string) bool {
		for _, shared := range []string{"/common/", "/organizations/", "/consumers/"} {
			if strings.Contains(issuer+"/", shared) {
				return true
			}
		}
		return false
	},
	subject: "oid",
}
