package pages

// Config holds the branding of pages. Colours are hexadecimal (#RRGGBB). The
// tags are the declaration that package config parses and documents.
type Config struct {
	_ struct{} `section:"2.16"`

	PrimaryColor               string `key:"primary_color" default:"#6F43E7" form:"color" status:"acts" doc:"Main colour of pages, #RRGGBB."`
	SecondaryColor             string `key:"secondary_color" default:"#6F43E7" form:"color" status:"acts" doc:"Second colour of pages, #RRGGBB."`
	DarkmodePrimaryColor       string `key:"darkmode_primary_color" default:"#6F43E7" form:"color" status:"acts" doc:"Main colour of pages in the dark, #RRGGBB."`
	DarkmodeSecondaryColor     string `key:"darkmode_secondary_color" default:"#49AAA1" form:"color" status:"acts" doc:"Second colour of pages in the dark, #RRGGBB."`
	LogoURL                    string `key:"logo_url" status:"acts" doc:"Picture at the top of pages."`
	FaviconURL                 string `key:"favicon_url" status:"acts" doc:"Icon of pages."`
	ErrorMessageFirstParagraph string `key:"error_message_first_paragraph" status:"acts" doc:"Markdown shown first on error pages, where the route shows details."`
}
