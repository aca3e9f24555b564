package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// A keyPair is written as NAME.crt and NAME.key.
type keyPair struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// runCertificates writes into the directory of its first argument what the API server and the kubelet
// need to trust each other; the further arguments are the addresses that both may be reached at.
func runCertificates() int {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: kube certificates DIRECTORY ADDRESS...")
		return 2
	}
	if err := writeCertificates(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func writeCertificates(directory string, addresses []string) error {
	authority, err := newKeyPair(&x509.Certificate{
		Subject:               pkix.Name{CommonName: "local-cluster"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}, nil)
	if err != nil {
		return err
	}
	if err := authority.write(directory, "ca"); err != nil {
		return err
	}
	server := &x509.Certificate{
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "node"},
	}
	for _, address := range addresses {
		server.IPAddresses = append(server.IPAddresses, net.ParseIP(address))
	}
	apiserver, kubelet := *server, *server
	apiserver.Subject = pkix.Name{CommonName: "kube-apiserver"}
	kubelet.Subject = pkix.Name{CommonName: "kubelet"}
	leaves := map[string]*x509.Certificate{
		"kube-apiserver": &apiserver,
		"kubelet":        &kubelet,
		"kubelet-client": { // what the API server shows to the kubelet, for logs and exec
			Subject:     pkix.Name{CommonName: "kube-apiserver", Organization: []string{"system:masters"}},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		},
		"service-accounts": {Subject: pkix.Name{CommonName: "service-accounts"}},
	}
	for name, template := range leaves {
		leaf, err := newKeyPair(template, authority)
		if err != nil {
			return err
		}
		if err := leaf.write(directory, name); err != nil {
			return err
		}
	}
	return nil
}

// newKeyPair signs the template with its authority, or with its own key where there is none.
func newKeyPair(template *x509.Certificate, authority *keyPair) (*keyPair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 64))
	if err != nil {
		return nil, err
	}
	template.NotBefore = time.Now().Add(-time.Hour) // a clock that was set back a little does no harm
	template.NotAfter = time.Now().AddDate(1, 0, 0)
	if template.KeyUsage == 0 {
		template.KeyUsage = x509.KeyUsageDigitalSignature
	}
	signer := &keyPair{template, key}
	if authority != nil {
		signer = authority
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer.certificate, &key.PublicKey, signer.key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	return &keyPair{certificate, key}, err
}

func (pair *keyPair) write(directory, name string) error {
	key, err := x509.MarshalECPrivateKey(pair.key)
	if err != nil {
		return err
	}
	path := filepath.Join(directory, name)
	block := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key})
	if err := os.WriteFile(path+".key", block, 0o600); err != nil {
		return err
	}
	block = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.certificate.Raw})
	return os.WriteFile(path+".crt", block, 0o644)
}
