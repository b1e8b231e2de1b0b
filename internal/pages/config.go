package pages

// Config holds the branding of pages. Colours are hexadecimal (#RRGGBB);
// unset ones keep Postern's own. The reference's defaults belong to its
// console, which these keys come from, and are not repeated here. The tags
// are the declaration that package config parses and documents.
type Config struct {
	_ struct{} `section:"2.16"`

	PrimaryColor               string `key:"primary_color" form:"color" status:"acts" doc:"Main colour of pages, #RRGGBB. Shifted in lightness where it would be too faint to read."`
	SecondaryColor             string `key:"secondary_color" form:"color" status:"acts" doc:"Second colour of pages, #RRGGBB; it decorates and never carries text."`
	DarkmodePrimaryColor       string `key:"darkmode_primary_color" form:"color" status:"acts" doc:"Main colour of pages in the dark, #RRGGBB. Unset: derived from primary_color."`
	DarkmodeSecondaryColor     string `key:"darkmode_secondary_color" form:"color" status:"acts" doc:"Second colour of pages in the dark, #RRGGBB. Unset: secondary_color."`
	LogoURL                    string `key:"logo_url" status:"acts" doc:"Picture at the top of pages, instead of mark and name."`
	FaviconURL                 string `key:"favicon_url" status:"acts" doc:"Icon of pages."`
	ErrorMessageFirstParagraph string `key:"error_message_first_paragraph" status:"acts" doc:"Markdown shown on refusal pages below our reason, where the route shows details."`
	OrganizationName           string `key:"organization_name" default:"Postern" status:"acts" doc:"Name beside the mark, in titles and as the logo's alternative text."`
	HelpURL                    string `key:"help_url" status:"acts" doc:"Where people get help, a web or mailto address; linked from pages if set."`
	PrivacyURL                 string `key:"privacy_url" status:"acts" doc:"Privacy statement, a web or mailto address; linked from pages if set."`
}

// Branding gives the keys as what New takes.
func (c Config) Branding() Branding {
	return Branding{
		Name:         c.OrganizationName,
		PrimaryColor: c.PrimaryColor, DarkPrimaryColor: c.DarkmodePrimaryColor,
		SecondaryColor: c.SecondaryColor, DarkSecondaryColor: c.DarkmodeSecondaryColor,
		LogoURL: c.LogoURL, FaviconURL: c.FaviconURL,
		ErrorParagraph: c.ErrorMessageFirstParagraph,
		HelpURL:        c.HelpURL, PrivacyURL: c.PrivacyURL,
	}
}
