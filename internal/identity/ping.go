package identity

// ping puts the address in the claim mail.
var ping = vendor{emailFrom: "mail"}
