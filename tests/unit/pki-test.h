/* pki-test.h - real certificates for the tests, made by the code under test when they are first asked for, removed at the end of the process. */
#ifndef PKI_TEST_H
#define PKI_TEST_H

#include "base/pki.h"
#include "base/tls.h"

#include <glib/gstdio.h>
#include <stdlib.h>

static char *pki_test_root;

static inline void pki_test_remove(const char *path)
{
	g_autoptr(GDir) d = g_file_test(path, G_FILE_TEST_IS_DIR) ? g_dir_open(path, 0, NULL) : NULL;
	for (const char *name; d && (name = g_dir_read_name(d));) {
		g_autofree char *child = g_build_filename(path, name, NULL);
		pki_test_remove(child);
	}
	g_remove(path);
}

static inline void pki_test_end(void) { pki_test_remove(pki_test_root); }

/* A folder of its own for a CA of that name. */
static inline char *pki_test_folder(const char *ca)
{
	g_autoptr(GError) error = NULL;
	if (!pki_test_root) {
		pki_test_root = g_dir_make_tmp("vcft-pki-XXXXXX", &error);
		g_assert_no_error(error);
		atexit(pki_test_end);
	}
	char *folder = g_build_filename(pki_test_root, ca, NULL);
	if (!g_file_test(folder, G_FILE_TEST_EXISTS))
		pki_make_ca(folder, pki_term_now(PKI_CA_DAYS), false, NULL, &error);
	g_assert_no_error(error);
	return folder;
}

/* The folder with the certificate of a host. */
static inline char *pki_test_host(const char *ca, const char *name, struct pki_term term)
{
	g_autoptr(GError) error = NULL;
	g_autofree char *folder = pki_test_folder(ca);
	char *own = g_build_filename(folder, name, NULL);
	if (!g_file_test(own, G_FILE_TEST_EXISTS))
		pki_make_host(folder, name, term, false, NULL, &error);
	g_assert_no_error(error);
	return own;
}

/* Credentials of a host of the cluster's CA; they live as long as the process. */
static inline struct tls_credentials *pki_test_credentials(const char *name)
{
	g_autoptr(GError) error = NULL;
	g_autofree char *own = pki_test_host("ca", name, pki_term_now(PKI_HOST_DAYS));
	struct tls_credentials *c = tls_credentials_load(own, name, &error);
	g_assert_no_error(error);
	return c;
}

#endif
