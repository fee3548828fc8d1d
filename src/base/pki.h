/* pki.h - a certificate authority of the cluster's own, and a certificate for each host, for those who have none: files in PEM.
 *
 *   DIR/ca.pem  DIR/ca-key.pem            the authority; its key signs, and is needed on no host
 *   DIR/NAME/{ca.pem,cert.pem,key.pem}    what host NAME keeps in its pki_dir
 *
 *  PK1 Folders are 0700, files 0600. PK2 No file is overwritten unless `replace`; a new file takes its place whole, or not at all.
 *  PK3 A host's certificate names one host (alternative name, DNS), signs nothing, and does not outlive its CA's.
 * Keys are ECDSA on P-256: a handshake is a fraction of a millisecond. Any thread. */
#ifndef VCFT_BASE_PKI_H
#define VCFT_BASE_PKI_H

#include <glib.h>
#include <stdbool.h>

#define PKI_CA_DAYS 3653u
#define PKI_HOST_DAYS 730u

/* Valid from `from` (seconds since 1970) for so many days. */
struct pki_term { gint64 from; unsigned days; };
/* From an hour ago, for clocks differ. */
struct pki_term pki_term_now(unsigned days);

/* ret_end (may be NULL): when it ends, seconds since 1970. */
gboolean pki_make_ca(const char *folder, struct pki_term term, bool replace, gint64 *ret_end, GError **error);
gboolean pki_make_host(const char *folder, const char *name, struct pki_term term, bool replace, gint64 *ret_end, GError **error);

#endif
