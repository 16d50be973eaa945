"""The SIP server of a site: Kamailio's configuration, users, certificate and process (docs/telephony.md)."""
